"""What a training run shows on a terminal: recipe and data, progress, samples of the model, and the score."""

import contextlib
import re
import shlex
import shutil
import sys
from pathlib import Path

from rich.text import Text

from minitransformer.recipes import list_changed_settings, list_recipes
from minitransformer.recipes.display import Display
from minitransformer.system.file_names import CORPUS, METRICS, PICTURE
from minitransformer.system.memory import measure_peak_memory
from minitransformer.system.progress import show_progress
from minitransformer.system.terminal import format_duration
from minitransformer.training import ProgressBar

SIZES = {
    "layers": "{} layers",
    "heads": "{} heads",
    "width": "width {}",
    "context_length": "context {}",
    "vocabulary_size": "{:,} tokens",
}
INDENT, MARGIN = 10, " " * 4
BETTER = {  # a recipe with a lower loss on the same bytes, and the loss that it reached
    "python": ("python-bpe", "train on pieces of words, to 1.535 bits per byte, less than xz needs"),
}


class TerminalDisplay(ProgressBar, Display):
    """Shows a run on standard output; without a terminal, plain lines and no bars."""

    def __init__(self):
        super().__init__()
        self.preparations = contextlib.ExitStack()

    def track(self, what):
        """Show a progress bar for ``what``, until the next call or ``begin``."""
        self.preparations.close()
        return self.preparations.enter_context(show_progress(what, self.console))

    def begin(self, recipe, trainer, material):
        """Show the recipe, the size of its data and model, and the output folder."""
        self.preparations.close()
        config = trainer.model.config
        for name, value in (
            ("recipe", describe_recipe(recipe, material.source.get("paths"))),
            ("data", _describe_size(material)),
            (
                "model",
                f"{recipe.architecture.title}, {trainer.model.parameter_count():,} parameters: "
                + ", ".join(
                    text.format(getattr(config, size))
                    for size, text in SIZES.items()
                    if hasattr(config, size)
                ),
            ),
            ("folder", trainer.output_dir),
        ):
            self.say(f"{name:<{INDENT}}{value}", indent=INDENT)

    def sample(self, text):
        """Print the generated ``text``, with "·" for control characters."""
        shown = "".join(sign if sign.isprintable() or sign in "\n\t" else "·" for sign in text)
        lines = shown.strip("\n").splitlines()
        if self.console.is_terminal:
            width = max(1, self.console.width - len(MARGIN))
            lines = [
                part.plain for line in lines for part in Text(line).wrap(self.console, width) or [Text()]
            ]
        self.say("\n".join(MARGIN + line for line in lines), "dim")

    def done(self, recipe, folder, material, score, seconds, data=(), options=()):
        """Show the score, where the files are, and what to try next; see ``suggest_commands``."""
        memory = measure_peak_memory()
        self.say(
            f"\nDone in {format_duration(seconds)}"
            + (f", with at most {memory / 1e9:.2f} GB of memory" if memory else "")
            + f".\n{describe_score(score)}"
        )
        self.say(
            f"\n{folder} holds the model (config.json, model.safetensors, tokenizer.json), its checkpoints, "
            f"{METRICS}, {PICTURE} and {CORPUS}.\n\nTry next:"
        )
        for what, arguments in suggest_commands(recipe, folder, material, data, options):
            self.say(f"  {what}\n{MARGIN}  {find_program()} {shlex.join(map(str, arguments))}")

    def end(self):
        """Remove the progress bar of a preparation."""
        self.preparations.close()


def describe_recipe(recipe, paths=()):
    """Return a description of ``recipe`` in one line; ``paths`` are the texts to train it on, if any."""
    if not paths:
        return f"{recipe.name}: {recipe.description}"
    return f"the settings of {recipe.name}, trained on {', '.join(map(str, paths))}"


def describe_score(score):
    """Return a sentence or two that explain ``score``, of ``evaluate_task`` or ``evaluate_text``."""
    if "exact_match" in score:
        return f"{score['correct']:,} of {score['examples']:,} validation examples correct."
    needed, xz = score["bits_per_byte"], score["xz_bits_per_byte"]
    task = f"To predict {score['bytes']:,} bytes that it was not trained on, the model needs"
    loss = f"{score['val_loss']:.4f} nats per token"
    if needed is None:
        return f"{task} {loss}. Lower is better."
    beside = "" if xz is None else f", and the compressor xz -9 needs {xz:.3f}"
    return (
        f"{task} {needed:.3f} bits per byte ({loss}). Lower is better: "
        f"a uniform guess needs 8 bits per byte{beside}."
    )


def suggest_commands(recipe, folder, material, data=(), options=()):
    """Yield commands to try after a run of ``recipe`` into ``folder``: their purpose, and their arguments.

    ``data`` and ``options`` are those that the run was given besides its settings.
    """
    if "generate" in recipe.architecture.commands:
        yield "generate text", ["generate", folder, "--prompt", material.prompt or _suggest_prompt(material)]
    another = "" if material.validation_text is None else ", or on another text (--data)"
    yield f"evaluate it again{another}", ["evaluate", folder]
    if recipe.pretrained is not None:  # its shape is fixed, and it may be better already
        return
    if recipe.name in BETTER and not data:
        name, why = BETTER[recipe.name]
        yield why, ["train", name, *options]
    if recipe.name in list_recipes():
        paths = [part for path in data for part in ("--data", path)]
        wider = f"width={2 * recipe.model.width}"
        settings = [*(own for own in list_changed_settings(recipe) if not own.startswith("width=")), wider]
        assignments = [part for setting in settings for part in ("--set", setting)]
        yield "train a wider model", ["train", recipe.name, *paths, *options, *assignments]


def find_program():
    """Return the command that runs this program from the current shell."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return "python -m minitransformer"
    return shlex.quote(program.name if shutil.which(program.name) else str(program))


def _suggest_prompt(material):
    """Return a prompt that fits the text that the model was trained on."""
    word = re.search(r"[^\W\d_]{3,}", material.validation_text.read(2**14))
    return "def " if material.source["corpus"] == "python" or word is None else word.group()


def _describe_size(material):
    """Return the size of the training and validation data, in one line."""
    if material.validation_text is None:
        return (
            f"{len(material.train.places()):,} examples to train on, "
            f"{len(material.validation.places()):,} to validate with"
        )
    return (
        f"{len(material.train.tokens):,} tokens to train on, {len(material.validation.tokens):,} "
        f"to validate with ({material.validation_text.byte_count:,} bytes)"
    )
