"""One rank as a process: its watchdog, its signals, its terminal, and what it does together with the other ranks."""
