"""The training room: recipe to adapter. Needs a card, or patience."""
