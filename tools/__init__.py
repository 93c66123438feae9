"""Programs about the product: run from a checkout as `python -m tools.NAME` or `python tools/NAME.py`;
never installed.
"""
