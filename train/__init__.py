"""The training room: recipe to adapter. Needs a GPU, or patience."""
