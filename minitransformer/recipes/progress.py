"""What a run tells whoever is watching it."""

from minitransformer.training import Callback


class Display(Callback):
    """What a run tells whoever is watching; this one keeps silent."""

    def begin(self, recipe, trainer, material):
        """The run is about to start."""

    def preparing(self, what):
        """Return what is called with how much of ``what`` is done and of how much."""
        return lambda done, total: None

    def sample(self, text):
        """The model has written ``text``."""
