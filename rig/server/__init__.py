"""The way to a running server: find one or start one, ask it, and tell systemd how it goes."""
