"""Callbacks: what is done beside the training, at its start, after a step, an evaluation, a save, at its end.

What a callback has to remember it reads from ``trainer.history``, the lines of the metrics: so a run that
is continued goes on as if it had never stopped.
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
    """The moments at which a callback is called; all of them do nothing here."""

    def on_train_begin(self, trainer):
        """Training is about to start, or to go on after ``trainer.step`` steps."""

    def on_step_end(self, trainer, result):
        """A step was made; ``result`` is its ``StepResult``."""

    def on_log(self, trainer, line):
        """``line`` was added to ``trainer.history`` and to the metrics."""

    def on_evaluate(self, trainer, line):
        """The line has a ``val_loss``."""

    def on_save(self, trainer, folder):
        """The model is being saved to ``folder``: more files may be added."""

    def on_train_end(self, trainer):
        """The last step is done; the model is about to be saved."""

    def on_train_exit(self, trainer):
        """Training is over, however it ended: also after an error."""


class EarlyStopping(Callback):
    """Ends the run when ``patience`` evaluations in a row did not lower the best loss by ``threshold``."""

    def __init__(self, patience=1, threshold=0.0):
        self.patience, self.threshold = patience, threshold

    def on_train_begin(self, trainer):
        """Stop again if the run had been stopped."""
        _check_judged(self, trainer)
        self._look(trainer)

    def on_evaluate(self, trainer, line):
        """Stop if it is time."""
        self._look(trainer)

    def _look(self, trainer):
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
        """See that there is something to judge by, and forget the best step of an earlier end."""
        _check_judged(self, trainer)
        trainer.settings = {name: value for name, value in trainer.settings.items() if name != "best_step"}

    def on_evaluate(self, trainer, line):
        """Save the model if none was better."""
        if line["step"] == best_step(trainer.history):
            with write_folder_atomically(trainer.output_dir / BEST) as temporary:
                trainer.save_model(temporary)

    def on_train_end(self, trainer):
        """Put the best weights back."""
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
    """Lets the model write after every evaluation: ``show(text)`` is given the text of the ids ``prompt``, as
    the tokenizer decodes it, and what the model wrote after it."""

    def __init__(self, tokenizer, prompt, show, max_new_tokens=200, temperature=0.8):
        self.tokenizer, self.prompt, self.show = tokenizer, list(prompt), show
        self.max_new_tokens, self.temperature = max_new_tokens, temperature

    def on_evaluate(self, trainer, line):
        """Write a sample; the same step always writes the same."""
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
        shown = itertools.dropwhile(special.__contains__, self.prompt)  # they only say where text begins
        self.show("".join(stream_text(self.tokenizer, shown, ids)))


def _check_judged(callback, trainer):
    if trainer.eval_dataset is None:
        raise InputError(
            f"{type(callback).__name__} goes by the validation loss; give the trainer an eval_dataset"
        )
