"""Proves the kernels on one device against the fp64 oracle, and times them: tools/gpu_kernels.py runs it.

Nothing here imports more than torch, triton and this checkout, so that it runs on a rented machine.
"""
