"""What tools/kernels/__main__.py measures: this project's kernels beside other implementations of the
same mathematics.
"""
