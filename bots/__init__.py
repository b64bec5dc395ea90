"""The bots: scheduled posts and summaries. They need nothing but the URL of a model."""
