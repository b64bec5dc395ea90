"""What a completion earns, and the check that a reward pays what it should."""
