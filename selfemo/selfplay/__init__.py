"""Self-play: prompts of both roles, episodes, their openings, and examples of the supervised start."""
