"""Makes the toy model from nothing: its text, its tokenizer, its weights, its card."""
