"""Measures this project's kernels beside other implementations of the same mathematics."""
