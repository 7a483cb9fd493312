"""Callbacks: actions at the start and the end of a training, and after a step, an evaluation or a save.

Callbacks that depend on earlier steps read ``trainer.history``, the lines of the metrics, instead of keeping
state: so a resumed run continues as if it had never stopped.
"""

import itertools
import warnings

from minitransformer.errors import InputError
from minitransformer.generation.sampling import generate
from minitransformer.generation.streaming import stream_text
from minitransformer.pretrained.model_folder import assign, read_values
from minitransformer.system.file_names import BEST
from minitransformer.system.files import write_folder_atomically
from minitransformer.training.best import best_step, saved_step, validation_losses


class Callback:
    """The methods that the trainer calls; here all of them do nothing."""

    def on_train_begin(self, trainer):
        """Training is about to start, or to be resumed after ``trainer.step`` steps."""

    def on_step_end(self, trainer, result):
        """A step was made; ``result`` is its ``StepResult``."""

    def on_log(self, trainer, line):
        """``line`` (a dictionary) was added to ``trainer.history`` and to the metrics file."""

    def on_evaluate(self, trainer, line):
        """``line`` was added, and it has a ``val_loss``."""

    def on_save(self, trainer, folder):
        """The model is being saved to ``folder``; other files may be written there."""

    def on_train_end(self, trainer):
        """The last step is done; the model is about to be saved."""

    def on_train_exit(self, trainer):
        """Training has ended, normally or by an error."""


class EarlyStopping(Callback):
    """Ends the run when ``patience`` evaluations in a row did not lower the best loss by ``threshold``."""

    def __init__(self, patience=1, threshold=0.0):
        self.patience, self.threshold = patience, threshold

    def on_train_begin(self, trainer):
        """Stop at once if the resumed run had been stopped."""
        _check_has_validation(self, trainer)
        self._stop_if_due(trainer)

    def on_evaluate(self, trainer, line):
        """Stop if the loss has not improved for long enough."""
        self._stop_if_due(trainer)

    def _stop_if_due(self, trainer):
        best, waited = float("inf"), 0
        for loss in validation_losses(trainer.history):
            if loss < best - self.threshold:
                best, waited = loss, 0
            else:
                waited += 1
        if waited >= self.patience:
            trainer.stop()


class KeepBest(Callback):
    """Keeps the model of the lowest validation loss in the folder ``best`` of the run.

    With ``load_at_end`` the run ends with its weights.
    """

    def __init__(self, load_at_end=False):
        self.load_at_end = load_at_end

    def on_train_begin(self, trainer):
        """Check that there is validation data; discard the best step that a resumed run had ended with."""
        _check_has_validation(self, trainer)
        trainer.settings = {name: value for name, value in trainer.settings.items() if name != "best_step"}

    def on_evaluate(self, trainer, line):
        """Save the model if it has the lowest loss so far."""
        if line["step"] == best_step(trainer.history):
            with write_folder_atomically(trainer.output_dir / BEST) as temporary:
                trainer.save_model(temporary)

    def on_train_end(self, trainer):
        """Load the best weights, if ``load_at_end``."""
        step, folder = best_step(trainer.history), trainer.output_dir / BEST
        if not self.load_at_end or step is None:
            return
        if saved_step(folder) != step:
            warnings.warn(
                f"the best model, that of step {step}, was not kept in {folder}; the run ends with its last",
                stacklevel=2,
            )
            return
        model = trainer.model
        assign(model, read_values(folder, model.config, model.flat.values.dtype.name))
        trainer.settings = {**trainer.settings, "best_step": step}


class Samples(Callback):
    """Generates a text after every evaluation and calls ``show(text)`` with it.

    The text is the prompt (the token ids ``prompt``), followed by up to ``max_new_tokens`` that are drawn at
    ``temperature``.
    """

    def __init__(self, tokenizer, prompt, show, max_new_tokens=200, temperature=0.8):
        self.tokenizer, self.prompt, self.show = tokenizer, list(prompt), show
        self.max_new_tokens, self.temperature = max_new_tokens, temperature

    def on_evaluate(self, trainer, line):
        """Show a sample; the same step always has the same one."""
        ids = generate(
            trainer.model,
            self.prompt,
            self.max_new_tokens,
            tokenizer=self.tokenizer,
            temperature=self.temperature,
            seed=trainer.step,
        )
        special = {
            index for index, token in self.tokenizer.get_added_tokens_decoder().items() if token.special
        }
        shown = itertools.dropwhile(special.__contains__, self.prompt)  # which only mark where a text begins
        self.show("".join(stream_text(self.tokenizer, shown, ids)))


def _check_has_validation(callback, trainer):
    if trainer.eval_dataset is None:
        raise InputError(
            f"{type(callback).__name__} needs a validation loss; give the trainer an eval_dataset"
        )
