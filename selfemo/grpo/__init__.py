"""SELF-GRPO's input: advantages over the whole rollout batch, and training samples."""
