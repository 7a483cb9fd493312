"""Writing with a model: tokens are drawn one by one, and become one stream of text."""
