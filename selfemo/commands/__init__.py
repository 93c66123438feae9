"""Define the `selfemo` command. Only this room, on top of all others, reads the terminal's arguments."""
