"""A progress bar for the trainer, and a line for every evaluation."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from minitransformer.system.progress import make_progress_bar
from minitransformer.system.terminal import fit_lines, format_duration
from minitransformer.training.callbacks import Callback

# seconds between two lines, where there is no bar
SHORTEST_SILENCE, LONGEST_SILENCE = 10, 60


class ProgressBar(Callback):
    """Shows a run on standard output: a bar, and a line for every evaluation.

    Where standard output is not a terminal, lines replace the bar: one per hundredth of the run, but at
    least 10 seconds and at most a minute apart.
    """

    def __init__(self):
        self.console = Console(highlight=False, soft_wrap=True, force_jupyter=False)
        self.progress = make_progress_bar(
            self.console,
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self.task, self.shown_loss, self.speed = None, None, ""
        self.began, self.last_line = (0.0, 0), (0.0, 0)  # the time and the step of each
        self.best_speed, self.warned = 0.0, False

    def on_train_begin(self, trainer):
        """Start the bar."""
        if trainer.step:
            left = trainer.max_steps - trainer.step
            rest = f"{left} steps to go" if left > 0 else "its last: nothing is left to do"
            self.say(f"\nresumed after step {trainer.step}, {rest}")
        self.task = self.progress.add_task(
            "training", completed=trainer.step, total=trainer.max_steps, state=""
        )
        self.began = self.last_line = time.monotonic(), trainer.step
        if self.console.is_terminal:
            self.progress.start()

    def on_step_end(self, trainer, result):
        """Advance the bar, or print a line if one is due."""
        earlier = result.loss if self.shown_loss is None else self.shown_loss
        self.shown_loss = 0.9 * earlier + 0.1 * result.loss
        state = f"loss {self.shown_loss:.3f}{self.speed}"
        self.progress.update(self.task, completed=trainer.step, state=f"{state} ·")
        if not self.console.is_terminal and trainer.step < trainer.max_steps:
            self._print_if_due(trainer, state)

    def on_log(self, trainer, line):
        """Record the speed."""
        if line["tokens_per_second"] is not None:
            self.speed = f", {line['tokens_per_second']:,.0f} tokens/s"

    def on_evaluate(self, trainer, line):
        """Print the losses above the bar."""
        train = "" if line["train_loss"] is None else f"training loss {line['train_loss']:.4f}, "
        speed = self.speed if line["tokens_per_second"] else ""
        self.say(f"\nstep {line['step']}: {train}validation loss {line['val_loss']:.4f}{speed}", "bold")
        self.warn_if_slowed(line["tokens_per_second"] or 0)
        self.last_line = time.monotonic(), trainer.step

    def on_train_exit(self, trainer):
        """Remove the bar."""
        if self.console.is_terminal:
            self.progress.stop()

    def warn_if_slowed(self, speed):
        """Print a warning, once, if ``speed`` is below a third of the best: other processes are running."""
        self.best_speed = max(self.best_speed, speed)
        if speed < self.best_speed / 3 and speed and not self.warned:
            self.warned = True
            self.say("(Other processes use the processors, and this run gets what they leave.)")

    def say(self, text, style="", indent=0):
        """Print ``text``, wrapped to the width of a terminal; see ``fit_lines``."""
        self.console.print(Text(fit_lines(text, self.console, indent), style=style))

    def _print_if_due(self, trainer, state):
        """Print a line with ``state`` if enough time or steps have passed since the last one."""
        now = time.monotonic()
        (then, step), (began, first) = self.last_line, self.began
        silence, share = now - then, (trainer.step - step) / trainer.max_steps
        if silence < SHORTEST_SILENCE or (silence < LONGEST_SILENCE and share < 0.01):
            return
        left = (now - began) / (trainer.step - first) * (trainer.max_steps - trainer.step)
        self.say(f"step {trainer.step} of {trainer.max_steps}: {state}, {format_duration(left)} left")
        self.last_line = now, trainer.step
