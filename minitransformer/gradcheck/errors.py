"""What a check says when it does not pass."""


class GradientError(AssertionError):
    """A backward pass and differences of its forward pass disagree, or one of the two broke its contract."""


class UndecidedError(RuntimeError):
    """Differences of the forward pass could not be measured well enough to judge the backward pass."""
