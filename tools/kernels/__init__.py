"""Measures the kernels: time and memory beside their peers, the compiler's resources, counted traffic."""
