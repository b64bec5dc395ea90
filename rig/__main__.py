"""`python -m rig` is the command `rig`."""

from rig.cli import main

main(prog_name="rig")
