"""Whether the file does what the model did: numbers, tokens, replies."""
