"""Model weights as files and shards: Hugging Face directories, Megatron's distributed checkpoints, and the way between them.

Everything rests on one idea: a Hugging Face tensor is the coordinate system, and any local tensor (a Megatron shard, a vLLM
parameter) is a set of rectangles cut from such tensors (`models.geometry.Placement`). Loading, exporting, converting, gathering and the
reshard plan are then the same few lines over rectangles, and a new model family is a list of names.
"""
