"""Held-out problems put to a model, scored, and compared before and after."""
