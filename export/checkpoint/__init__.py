"""What is read: a model folder, its adapter, its tokenizer, its tensors."""
