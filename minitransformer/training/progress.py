"""A progress bar for the trainer, and a line for every evaluation."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from minitransformer.training.callbacks import Callback


class ProgressBar(Callback):
    """Shows a run on standard output; where that is no terminal, the lines without the bar."""

    def __init__(self):
        self.console = Console(highlight=False, soft_wrap=True, force_jupyter=False)
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            transient=True,
        )
        self.task, self.shown_loss = None, None
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
        if self.console.is_terminal:
            self.progress.start()

    def on_step_end(self, trainer, update):
        """Move the bar."""
        earlier = update.loss if self.shown_loss is None else self.shown_loss
        self.shown_loss = 0.9 * earlier + 0.1 * update.loss
        self.progress.update(self.task, completed=trainer.step, state=f"loss {self.shown_loss:.3f} ·")

    def on_evaluate(self, trainer, line):
        """Print the losses above the bar."""
        train = "" if line["train_loss"] is None else f"training loss {line['train_loss']:.4f}, "
        speed = "" if line["tokens_per_second"] is None else f", {line['tokens_per_second']:,.0f} tokens/s"
        self.say(
            f"\nstep {line['step']}: {train}validation loss {line['val_loss']:.4f} (sample){speed}", "bold"
        )
        self.warn_of_company(line["tokens_per_second"] or 0)

    def on_train_exit(self, trainer):
        """Take the bar away."""
        if self.console.is_terminal:
            self.progress.stop()

    def warn_of_company(self, speed):
        """Say it once if the run has become much slower: NumPy's threads wait for one that has to wait."""
        self.best_speed = max(self.best_speed, speed)
        if speed < self.best_speed / 3 and speed and not self.warned:
            self.warned = True
            self.say(
                "(The machine is busy with something else, and NumPy's threads wait for each other; "
                "a run started with OPENBLAS_NUM_THREADS=1 hardly minds.)"
            )

    def say(self, text, style=""):
        """Print ``text`` as it is."""
        self.console.print(Text(text, style=style))
