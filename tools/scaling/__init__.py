"""How a run scales: measured over a few local processes, planned over thousands of GPUs, and what the
project's own parts cost.

Measured and planned points stand in one table and one plot and are never joined: every row says which
it is, and of what hardware.
"""
