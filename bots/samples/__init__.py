"""Invented cards for the offline quickstart; no name or text of a real card is in them."""
