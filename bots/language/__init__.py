"""What can be told of a text without a model: where its sentences end, how long it is, its language."""
