"""Bytes of any kind become an article's text, in a process that may be killed."""
