"""Models: each readable top to bottom."""

from minitransformer.models.gpt import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
