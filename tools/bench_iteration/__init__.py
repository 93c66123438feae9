"""Measures an iteration beside plain vLLM and beside TRL (`python -m tools.bench_iteration`)."""
