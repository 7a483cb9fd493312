"""What a whole run shows on a terminal: what it will do, how it gets on, and what the model writes."""

import contextlib

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from minitransformer.run import Display
from minitransformer.training import ProgressBar


class TerminalDisplay(ProgressBar, Display):
    """Shows a run on standard output; where that is no terminal, plain lines without bars."""

    def __init__(self):
        super().__init__()
        self.preparations = contextlib.ExitStack()

    def preparing(self, what):
        """Show a bar for ``what`` until the next thing begins."""
        if not self.console.is_terminal:
            return super().preparing(what)
        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
        self.preparations.close()
        bar = self.preparations.enter_context(Progress(*columns, console=self.console, transient=True))
        task = bar.add_task(what, total=None)
        return lambda done, total: bar.update(task, completed=done, total=total)

    def begin(self, recipe, trainer, material):
        """Say what will be done."""
        self.preparations.close()
        config = trainer.model.config
        self.say(f"recipe    {recipe.name}: {recipe.description}")
        self.say(f"data      {_described(material)}")
        self.say(
            f"model     GPT, {trainer.model.parameter_count():,} parameters: {config.layers} layers, "
            f"{config.heads} heads, width {config.width}, context {config.context_length}, "
            f"{config.vocabulary_size:,} tokens"
        )
        self.say(f"folder    {trainer.output_dir}")

    def sample(self, text):
        """Print what the model wrote, its control characters made visible."""
        shown = "".join(sign if sign.isprintable() or sign in "\n\t" else "·" for sign in text)
        self.say("\n".join(f"    {part}" for part in shown.strip("\n").splitlines()), "dim")

    def end(self):
        """Take away what was shown before the training began."""
        self.preparations.close()


def _described(material):
    """Return in one line what is learned from."""
    if material.validation_text is None:
        return (
            f"{len(material.train.places()):,} examples to train on, "
            f"{len(material.validation.places()):,} to validate with"
        )
    return (
        f"{len(material.train.tokens):,} tokens to train on, {len(material.validation.tokens):,} "
        f"to validate with ({material.validation_text.byte_count:,} bytes)"
    )
