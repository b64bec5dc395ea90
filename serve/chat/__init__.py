"""The model at the shell: one question, a conversation, what was said before."""
