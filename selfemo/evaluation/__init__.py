"""Evaluates models on held-out dialogues: recognition, expression, intervals, calibration, signs of
collapse.
"""
