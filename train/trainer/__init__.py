"""TRL's trainer as rig drives it: its settings, its callback, preflight and checkpoints."""
