"""The serving room: one GGUF on a small box, over HTTP."""
