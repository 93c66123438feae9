"""The colocated vLLM engine: takes token ids and the trainer's weights, gives sampled ids and logprobs.

Only this room imports vllm.
"""
