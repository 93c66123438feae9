"""Property tests here have no deadline: on a shared machine a slow example says nothing about the code."""

from hypothesis import settings

settings.register_profile("shared", deadline=None, max_examples=100)
settings.load_profile("shared")
