"""TensorBoard and Weights & Biases: views of metrics.jsonl, written while the run goes on."""
