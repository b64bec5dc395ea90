"""The export room: base and adapter to one quantised GGUF, checked. Needs neither GPU nor torch."""
