"""`rig serve` as a service of the system."""
