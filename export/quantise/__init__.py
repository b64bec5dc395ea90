"""Which type each tensor gets, and the bytes of it."""
