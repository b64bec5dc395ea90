"""The frame of the house: light, and it imports no room."""

__version__ = "0.1.0"
