"""The `selfemo` command: the only room that knows the terminal's arguments, on top of all others."""
