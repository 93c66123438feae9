"""The data flywheel: self-play samples that are kept, stored, shown, replayed and exported."""
