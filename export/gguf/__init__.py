"""What is written: tensors, metadata and adapters as GGUF."""
