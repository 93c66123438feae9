"""Makes one self-contained HTML page about a run, from the run's own records (docs/report.md)."""
