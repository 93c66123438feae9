"""Represent emotions as sets of labels: closed label sets, the answer grammar, label affinity and
the smoothed IoU.

Nothing here imports torch.
"""
