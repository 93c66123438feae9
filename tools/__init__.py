"""Programs that measure, check and convert: run from a checkout, never installed.

Run one as `python -m tools.NAME` or `python tools/NAME.py`.
"""
