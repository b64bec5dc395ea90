"""The page of a run, in one file."""
