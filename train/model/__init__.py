"""The model while it trains: loading it, decoding groups, learning from packed rows."""
