"""Measures and plans how a run scales.

Runs are measured over a few local processes and planned over thousands of GPUs; the cost of the
project's own parts is measured. Measured and planned points stand in one table and one plot and are
never joined: every row says whether it was measured, and on what hardware.
"""
