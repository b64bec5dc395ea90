"""What the bots remember: every slot, draft and sending, written here before anything goes out."""
