"""What a recipe will need before it runs: memory by part, and the shape it follows from."""
