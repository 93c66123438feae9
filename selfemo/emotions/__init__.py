"""Emotions as sets of labels: the closed label sets, the answer grammar, label affinity and the smoothed IoU. No torch here."""
