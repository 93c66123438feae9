"""Estimate a run before it starts: memory by kind and rank, sync bytes, step time, and the layout to choose.

Weights, gradients, optimizer state and sync traffic follow fixed rules: they are computed exactly
and tested against real runs. Activations and step time depend on kernels: they are estimated with a
roofline that is calibrated on one published run and tested on others. Everything is integer
arithmetic and that roofline; torch is not imported.
"""
