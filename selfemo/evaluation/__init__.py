"""Evaluation: recognition and expression on held-out dialogues, with intervals, calibration and signs
of collapse.
"""
