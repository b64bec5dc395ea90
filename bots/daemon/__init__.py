"""The process that keeps the schedules: who drafts when, and what is delivered."""
