"""What this machine has, and what of a model fits it."""
