"""The colocated vLLM engine: token ids in, sampled ids and logprobs out, weights from the trainer. Only this room imports vllm."""
