"""Before a run: memory by kind and rank, sync bytes, step time, and which layout to choose. Integers and a roofline; no torch.

What is allocated by rule (weights, gradients, optimizer state, sync traffic) is computed exactly and tested against real runs.
What depends on kernels (activations, step time) is an estimate, calibrated on one published run and tested on others.
"""
