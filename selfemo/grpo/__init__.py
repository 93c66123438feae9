"""From scored groups to what a training step consumes: advantages over the whole rollout batch, and training samples."""
