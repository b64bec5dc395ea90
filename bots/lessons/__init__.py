"""What a bot does, as lessons and as an exam: prompts in a file, rewards and judgements by entry points."""
