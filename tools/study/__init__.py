"""A controlled comparison of training variants: many runs, one evaluation, intervals over seeds and
dialogues.
"""
