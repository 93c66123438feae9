"""Compares training variants under control: many runs, one evaluation, intervals over seeds and dialogues."""
