"""Runs `make gpu-check`: the first hour on a GPU machine, as one command and one report.

Every step is a process of its own with a deadline, so that one that crashes or hangs takes no other
with it, and each tells which files to send back if it fails. Steps that a CPU can run as well do so
under --device cpu: that is how the harness itself is tested.
"""
