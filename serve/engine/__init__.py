"""The model's own process: what is decoded in one step, for whom, and from which cache."""
