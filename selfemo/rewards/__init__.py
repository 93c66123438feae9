"""Rewards: named components, each a small pure function, and the rewards of a group."""
