"""Which settings serve a model best on this machine."""
