"""The trainer: steps, evaluations, metrics and checkpoints of a run, which can be stopped and resumed."""

import json
import math
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from minitransformer.data.datasets import count_tokens, fingerprint
from minitransformer.errors import ChangedSettingError, DivergedError, InputError, Stopped
from minitransformer.evaluation import scores
from minitransformer.functional import Key
from minitransformer.models.table import find_architecture
from minitransformer.pretrained.model_folder import save_model
from minitransformer.system.file_names import CONFIG, METRICS
from minitransformer.system.files import write_atomically
from minitransformer.system.memory import reuse_freed_memory
from minitransformer.training.best import restore_best
from minitransformer.training.callbacks import KeepBest
from minitransformer.training.checkpoints import (
    find_checkpoints,
    load_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
)
from minitransformer.training.optimisers import make_optimiser
from minitransformer.training.output import claim_folder
from minitransformer.training.progress import ProgressBar
from minitransformer.training.signals import catch_signals
from minitransformer.training.step import train_step


class TrainOutput(NamedTuple):
    """What ``Trainer.train`` returns, by Hugging Face's names.

    ``global_step`` is the number of steps of the whole run, ``training_loss`` the mean of their losses (None
    if there are none), both the same whether the run was resumed or not. ``metrics`` has ``train_runtime``
    (seconds), ``train_samples_per_second`` and ``train_steps_per_second`` of this call alone, ``train_loss``
    and ``epoch``.
    """

    global_step: int
    training_loss: float | None
    metrics: dict


class Prediction(NamedTuple):
    """What ``Trainer.predict`` returns: logits (N, T, V), targets (N, T; −100 is no target) and metrics."""

    predictions: Any
    label_ids: Any
    metrics: dict


class Trainer:
    """Trains ``model`` on ``train_dataset`` as ``args`` (``TrainingArguments``) say.

    ``args.output_dir`` then holds the model, ``metrics.jsonl`` (an object for every logged step) and
    ``checkpoint-STEP`` folders. ``eval_dataset`` is the validation data: the loss is computed on a fixed
    sample of it every ``eval_steps`` and at the end. The methods of ``callbacks`` are called as ``Callback``
    says; a ``ProgressBar`` is added unless one is among them or ``args.disable_tqdm`` is True. ``settings``
    are recorded in the ``config.json`` of every saved model.
    """

    def __init__(self, model, args, train_dataset, eval_dataset=None, callbacks=None, settings=None):
        self.model, self.args = model, args
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.callbacks = list(callbacks or ())
        if not (args.disable_tqdm or any(isinstance(callback, ProgressBar) for callback in self.callbacks)):
            self.callbacks.insert(0, ProgressBar())
        if args.load_best_model_at_end:
            self.callbacks.append(KeepBest(load_at_end=True))
            if eval_dataset is None:
                raise InputError("load_best_model_at_end needs an eval_dataset to tell which model is best")
        self.settings = settings or {}
        self.output_dir = Path(args.output_dir)
        self.max_steps = args.steps_for(train_dataset)
        self._reset()

    def train(self, resume_from_checkpoint=False):
        """Train to the end, save the model to ``args.output_dir``, and return a ``TrainOutput``.

        With ``resume_from_checkpoint`` the run in that folder continues from its newest undamaged checkpoint,
        or starts if there is none, and ends bit for bit as if it had never stopped (on the same CPU, with the
        same libraries and number of threads; a GPU adds some gradients in no fixed order).

        Raises Stopped, a KeyboardInterrupt, after Ctrl-C or SIGTERM, once the step is finished and saved;
        InputError for examples that the model cannot be trained on and for a folder that holds another run;
        TypeError for a model that is not in the table of architectures; and DivergedError as soon as a loss
        is not finite: all checkpoints are from before. If a run ends before its first step, the folder is
        restored as it was.
        """
        if not isinstance(resume_from_checkpoint, bool):
            raise InputError(
                f"resume_from_checkpoint is {resume_from_checkpoint!r}; expected True or False: it is always "
                "the newest undamaged checkpoint in output_dir that is resumed"
            )
        started = time.perf_counter()
        find_architecture(self.model)  # without one it could not be saved
        self._reset()
        self._check_data()
        self._datasets = {
            "train_dataset": fingerprint(self.train_dataset),
            "eval_dataset": fingerprint(self.eval_dataset),
        }
        reuse_freed_memory()
        with claim_folder(self.output_dir, resume_from_checkpoint, self.args.overwrite_output_dir) as undo:
            try:
                self.optimiser = make_optimiser(self.model, self.args)
                if resume_from_checkpoint:
                    self._resume()
                self._run()
            except BaseException:
                if self.step == 0 and self._saved_step is None:
                    undo()
                raise
        return self._make_output(time.perf_counter() - started)

    def evaluate(self, eval_dataset=None):
        """Return ``val_loss`` and ``perplexity`` over all of ``eval_dataset``, or of the trainer's own."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise InputError("there is nothing to evaluate: the trainer was given no eval_dataset")
        self._check(dataset, "eval_dataset")
        loss = scores.whole_loss(self.model, dataset)
        return {"val_loss": loss, "perplexity": scores.perplexity(loss)}

    def predict(self, test_dataset):
        """Return a ``Prediction``: the logits for every example, its targets, and ``evaluate``'s metrics."""
        self._check(test_dataset, "test_dataset")
        return Prediction(*scores.predict(self.model, test_dataset), self.evaluate(test_dataset))

    def save_model(self, output_dir):
        """Write the model to the folder ``output_dir``, with the files that the callbacks add."""
        self.notify("on_save", output_dir)
        save_model(self.model, output_dir, {**self.settings, "step": self.step})

    def stop(self):
        """End the run after the current step."""
        self._stopping = True

    def notify(self, moment, *arguments):
        """Call the method ``moment`` of all callbacks with the trainer and ``arguments``."""
        for callback in self.callbacks:
            getattr(callback, moment)(self, *arguments)

    def _stop_by_signal(self, number):
        self._signal = number
        self.stop()

    def _reset(self):
        """Set the state of a run before its first step."""
        self.optimiser = None
        self.step, self.history = 0, []
        self._loss_sum, self._loss_count = 0.0, 0  # since the last line of the history
        self._tokens, self._seconds = 0, 0.0
        self._first_step, self._examples = 0, 0  # of this call of train
        self._saved_step = None  # of the newest checkpoint
        self._saved_is_unproven = False  # until the loss of its weights is known to be finite
        self._stopping, self._signal = False, None

    def _check_data(self):
        """Raise InputError now for data that would end the run at some step."""
        rows = self.args.rows
        if self.train_dataset.batches_per_epoch(rows) < 1:
            raise InputError("train_dataset has no examples")
        self._check(self.train_dataset, "train_dataset")
        if self.max_steps:
            self.train_dataset.training_places(0, rows, self.args.seed)
        if self.eval_dataset is not None:
            self._check(self.eval_dataset, "eval_dataset")

    def _check(self, dataset, name):
        try:
            if len(dataset.places()) == 0:
                raise InputError("there are no examples")
            if hasattr(dataset, "check"):
                dataset.check(self.model.config.vocabulary_size, self.model.config.context_length)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None

    def _run(self):
        """Make the remaining steps, and save the model to the output folder."""
        self._first_step = self.step
        (self.output_dir / CONFIG).unlink(missing_ok=True)  # of an earlier end of this run
        self._write_history()
        try:
            self.notify("on_train_begin")
            with catch_signals(self._stop_by_signal):
                self._train()
            if self._signal is not None and self.step < self.max_steps:
                raise Stopped(self._signal, None if self._saved_step is None else self.output_dir)
            self.notify("on_train_end")
            self.save_model(self.output_dir)
        except DivergedError as error:
            raise DivergedError(f"{error}; {self._describe_saved()}") from None
        finally:
            self.notify("on_train_exit")

    def _make_output(self, seconds):
        total, before = self._loss_sum, 0
        for line in self.history:
            total += (line["train_loss"] or 0.0) * (line["step"] - before)
            before = line["step"]
        loss = total / self.step if self.step else None
        metrics = {
            "train_runtime": seconds,
            "train_samples_per_second": self._examples / seconds,
            "train_steps_per_second": (self.step - self._first_step) / seconds,
            "train_loss": loss,
            "epoch": self.step / self.train_dataset.batches_per_epoch(self.args.rows),
        }
        return TrainOutput(self.step, loss, metrics)

    def _train(self):
        if self.step == 0 and not self.history and self.eval_dataset is not None:
            self._log(None, None)
        while self.step < self.max_steps and not self._stopping:
            started = time.perf_counter()
            learning_rate = self.args.learning_rate_at(self.step, self.max_steps)
            places = self.train_dataset.training_places(self.step, self.args.rows, self.args.seed)
            rows = self.args.per_device_train_batch_size
            parts = [places[first : first + rows] for first in range(0, len(places), rows)]
            batches = [self.train_dataset.collate(part) for part in parts]
            key, max_grad_norm = Key(self.args.seed << 32 | self.step), self.args.max_grad_norm
            result = train_step(self.model, self.optimiser, batches, learning_rate, max_grad_norm, key)

            self.step += 1
            self._loss_sum += result.loss
            self._loss_count += 1
            self._examples += len(places)
            self._tokens += sum(map(count_tokens, batches))
            self._seconds += time.perf_counter() - started
            self._remove_superseded_checkpoints()
            self.notify("on_step_end", result)
            last = self.step == self.max_steps
            if last or self.step % self.args.logging_steps == 0 or self.step % self.args.eval_steps == 0:
                self._log(result, learning_rate)
            if self.step % self.args.save_steps == 0:
                self._save()
        if self.step == 0 and self._signal is not None:
            return  # nothing was trained
        if self._saved_step != self.step:
            self._save()
        if self._signal is None:
            self._remove_superseded_checkpoints()

    def _log(self, result, learning_rate):
        """Add a line to the history and the metrics file, with the validation loss where it is due."""
        val_loss = None
        due = self.step == self.max_steps or self.step % self.args.eval_steps == 0
        if self.eval_dataset is not None and due:
            val_loss = scores.sampled_loss(self.model, self.eval_dataset)
            if not math.isfinite(val_loss):
                raise DivergedError(
                    f"training diverged at step {self.step}: the validation loss is {val_loss}; "
                    "try a lower learning_rate"
                )
        line = {
            "step": self.step,
            "train_loss": self._loss_sum / self._loss_count if self._loss_count else None,
            "val_loss": val_loss,
            "learning_rate": learning_rate,
            "gradient_norm": result.gradient_norm if result else None,
            "tokens_per_second": self._tokens / self._seconds if self._seconds else None,
        }
        self.history.append(line)
        with (self.output_dir / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._loss_sum, self._loss_count, self._tokens, self._seconds = 0.0, 0, 0, 0.0
        self.notify("on_log", line)
        if val_loss is not None:
            self.notify("on_evaluate", line)

    def _save(self):
        """Write a checkpoint."""
        state = {
            "step": self.step,
            "loss_sum": self._loss_sum,
            "loss_count": self._loss_count,
            "args": asdict(self.args),
            "datasets": self._datasets,
            "log_history": self.history,
        }
        try:
            save_checkpoint(self.output_dir, self.model, self.optimiser, state, self.save_model)
        except OSError as error:
            raise OSError(f"{error}, while step {self.step} was saved; {self._describe_saved()}") from None
        self._saved_step, self._saved_is_unproven = self.step, True

    def _remove_superseded_checkpoints(self):
        """Remove the checkpoints beyond ``save_total_limit``, if one has been written since the last call.

        Called after a step and at the end of the run, not when a checkpoint is written: only the next step
        shows that the loss of its weights is finite. Until then an older one may be the last usable.
        """
        if not self._saved_is_unproven:
            return
        self._saved_is_unproven = False
        if self.args.save_total_limit is None:
            return
        try:
            remove_old_checkpoints(self.output_dir, self._saved_step, self.model, self.optimiser, self.args)
        except (InputError, OSError) as error:
            warnings.warn(f"{error}; older checkpoints are kept", stacklevel=3)

    def _resume(self):
        """Load the newest undamaged checkpoint, if there are any."""
        damaged = []
        for folder in reversed(find_checkpoints(self.output_dir)):
            try:
                state = load_checkpoint(folder, self.model, self.optimiser, self.args, self._datasets)
            except ChangedSettingError:
                raise
            except InputError as error:
                damaged.append(str(error))
                continue
            self.step, self.history = state["step"], state["log_history"]
            self._loss_sum, self._loss_count = state["loss_sum"], state["loss_count"]
            self._saved_step = self.step
            break
        else:
            if damaged:
                raise InputError(f"no checkpoint in {self.output_dir} can be resumed: {'; '.join(damaged)}")
            folder = None
        restore_best(self.output_dir, folder, self.history)
        for problem in damaged:
            warnings.warn(f"{problem}; resuming after step {self.step}", stacklevel=3)

    def _write_history(self):
        """Write the metrics file anew from the history: it may have lines of steps after the checkpoint."""
        with write_atomically(self.output_dir / METRICS) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self.history), encoding="utf-8")

    def _describe_saved(self):
        if self._saved_step is None:
            return "nothing was saved yet"
        return f"{self.output_dir} keeps the checkpoint of step {self._saved_step}"
