"""The data flywheel: which self-play samples are kept, where they are recorded, and how they are shown, replayed and exported."""
