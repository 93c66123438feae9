"""Rewards: named components, each a small pure function, and their assembly per group."""
