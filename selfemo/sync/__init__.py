"""Send the trainer's weights to the engines and prove that they arrived."""
