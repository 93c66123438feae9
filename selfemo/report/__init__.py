"""One self-contained HTML page about a run, made from what the run recorded (docs/report.md)."""
