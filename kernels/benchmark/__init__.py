"""What tools/bench_kernels.py measures: this project's kernels beside other implementations of the same mathematics."""
