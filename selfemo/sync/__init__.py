"""Weights from the trainer into the engines, and the proof that they arrived."""
