"""The errors that a check raises."""


class GradientError(AssertionError):
    """A backward pass and differences of its forward pass disagree, or one violates its contract."""


class UndecidedError(RuntimeError):
    """Differences of the forward pass could not be measured well enough to judge the backward pass."""
