"""From an address or a file to a summary: fetched with care, read whole, asked for in few words."""
