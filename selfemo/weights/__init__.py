"""Read, write and convert model weights: Hugging Face directories and Megatron's distributed
checkpoints.

A Hugging Face tensor serves as the coordinate system: any local tensor (a Megatron shard, a vLLM
parameter) is a set of rectangles cut from such tensors (`models.geometry.Placement`). Loading,
exporting, converting, gathering and the reshard plan are then the same few lines over rectangles,
and a new model family is a list of names.
"""
