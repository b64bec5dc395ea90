"""The card bot: a local copy of the cards, a shuffled deck, a draft, and the checks that it must pass."""
