"""What a run shows of its progress."""

from minitransformer.training import Callback


class Display(Callback):
    """Shows the progress of a run; this one shows nothing."""

    def begin(self, recipe, trainer, material):
        """The run is about to start."""

    def track(self, what):
        """Return a function of the work done and its total, to report the progress of ``what``."""
        return lambda done, total: None

    def sample(self, text):
        """The model has written ``text``."""
