"""HTTP in OpenAI's words: what is asked, who is let in, what is answered."""
