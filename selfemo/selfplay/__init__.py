"""Self-play: prompts of both roles, episodes in lock-step, seeds, and the examples of the supervised start."""
