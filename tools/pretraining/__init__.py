"""Parts of `tools/pretrain.py`: the corpus (data), the model (model) and zero-shot accuracies (evaluate)."""
