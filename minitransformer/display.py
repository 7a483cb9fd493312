"""What a training run shows on a terminal: a progress bar, the losses, and what the model writes."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from minitransformer.run import Display


class TerminalDisplay(Display):
    """Shows a run on standard output; where that is no terminal, plain lines without a bar."""

    def __init__(self):
        self.console = Console(highlight=False, soft_wrap=True)
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
        self.task = None
        self.best_speed, self.warned = 0.0, False

    def begin(self, recipe, model, corpus, output_dir):
        """Say what will be done, and start the bar."""
        config = model.config
        self.say(f"recipe    {recipe.name}: {recipe.description}")
        self.say(
            f"text      {len(corpus.train):,} characters to train on, "
            f"{len(corpus.validation):,} to validate with, {config.vocabulary_size} different"
        )
        self.say(
            f"model     GPT, {model.parameter_count():,} parameters: {config.layers} layers, "
            f"{config.heads} heads, width {config.width}, context {config.context_length}"
        )
        self.say(f"folder    {output_dir}")
        self.task = self.progress.add_task("training", total=recipe.training.max_steps, state="")
        if self.console.is_terminal:
            self.progress.start()

    def stepped(self, step, loss, tokens_per_second):
        """Move the bar."""
        state = f"loss {loss:.3f} · {tokens_per_second:,.0f} tokens/s ·"
        self.progress.update(self.task, completed=step.number, state=state)

    def evaluated(self, line, sample):
        """Print the losses and the sample above the bar."""
        train = "" if line["train_loss"] is None else f"training loss {line['train_loss']:.4f}, "
        speed = "" if line["tokens_per_second"] is None else f", {line['tokens_per_second']:,.0f} tokens/s"
        self.say(
            f"\nstep {line['step']}: {train}validation loss {line['val_loss']:.4f} (sample){speed}", "bold"
        )
        self.warn_of_company(line["tokens_per_second"] or 0)
        self.say("\n".join(f"    {part}" for part in sample.strip("\n").splitlines()), "dim")

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

    def end(self):
        """Take the bar away."""
        if self.console.is_terminal:
            self.progress.stop()
