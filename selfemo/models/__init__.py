"""Describe model families: their sizes, the names of their tensors, and how each tensor is cut over
ranks.

No torch module is built here.
"""
