"""One rank as a process: its watchdog, signals and terminal, and its agreements with the other ranks."""
