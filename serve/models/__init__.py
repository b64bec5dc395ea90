"""Which models there are: those of runs, those pulled, those named."""
