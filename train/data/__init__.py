"""Where problems come from: files, hubs, generators; and when an answer is right."""
