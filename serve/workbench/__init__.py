"""Work on foreign text in processes that may be ended: templates, tokens, grammars."""
