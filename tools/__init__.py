"""Programs of the project's own making that the wheel leaves out."""
