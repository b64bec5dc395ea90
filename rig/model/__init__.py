"""What a model says of itself: its weights, its GGUF header, its chat template, its replies' form."""
