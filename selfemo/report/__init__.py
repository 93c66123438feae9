"""One self-contained HTML file about a run, made from what the run recorded (docs/report.md)."""
