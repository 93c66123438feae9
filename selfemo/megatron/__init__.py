"""Everything that imports megatron-core: device, parallel layout, model, packed batches, learner,
checkpoints.
"""
