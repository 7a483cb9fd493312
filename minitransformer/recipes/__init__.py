"""Recipes: all settings of a training run by name, as TOML files in this folder."""

import difflib
import tomllib
from dataclasses import dataclass, fields
from importlib import resources

from minitransformer.errors import InputError
from minitransformer.models import GPTConfig
from minitransformer.training import TrainingArguments

DECIDED_BY_THE_CORPUS = "vocabulary_size"
# what other projects call it
ELSEWHERE = {
    "lr": "learning_rate",
    "steps": "max_steps",
    "max_iters": "max_steps",
    "batch_size": "per_device_train_batch_size",
    "block_size": "context_length",
    "n_positions": "context_length",
    "n_layer": "layers",
    "n_head": "heads",
    "n_embd": "width",
    "hidden_size": "width",
}


@dataclass(frozen=True)
class Recipe:
    """A named run: ``corpus`` is ``"python"`` or ``"text"``; ``model`` holds fields of ``GPTConfig``."""

    name: str
    description: str
    corpus: str
    model: dict
    training: TrainingArguments

    def config(self, vocabulary_size):
        """Return the ``GPTConfig`` for a corpus of ``vocabulary_size`` tokens."""
        return GPTConfig(vocabulary_size=vocabulary_size, **self.model)


def recipe_names():
    """Return the names of all recipes, sorted."""
    folder = resources.files(__package__)
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def load_recipe(name, assignments=()):
    """Return the recipe ``name`` with ``assignments`` made, strings like ``"max_steps=500"``.

    A value is read as TOML, or as a string where that fails; of two for one name the last wins. Raises
    InputError for a recipe or a setting that does not exist (suggesting the nearest) and for an unfit value.
    """
    if name not in recipe_names():
        raise InputError(f"there is no recipe {name!r}{_nearest(name, recipe_names())}")
    text = resources.files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    known = {
        "model": _names(GPTConfig, without=DECIDED_BY_THE_CORPUS),
        "training": _names(TrainingArguments),
    }
    for assignment in assignments:
        setting, equals, written = assignment.partition("=")
        setting = setting.strip()
        part = next((part for part, names in known.items() if setting in names), None)
        if not equals:
            raise InputError(f"{assignment!r} is not name=value")
        if part is None:
            names = sorted(known["model"] | known["training"])
            raise InputError(f"there is no setting {setting!r}{_nearest(setting, names)}")
        table[part][setting] = _value(written.strip())
    recipe = Recipe(
        name, table["description"], table["corpus"], table["model"], TrainingArguments(**table["training"])
    )
    recipe.config(vocabulary_size=1)
    return recipe


def _names(settings, without=None):
    return {field.name for field in fields(settings) if field.name != without}


def _value(written):
    """Read ``written`` as TOML, or as a string where it is none."""
    try:
        written = {"True": "true", "False": "false"}.get(written, written)  # Python's spelling
        return tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        return written


def _nearest(name, known):
    if name in ELSEWHERE:
        return f"; did you mean {ELSEWHERE[name]!r}?"
    if name == DECIDED_BY_THE_CORPUS:
        return ": the text decides it"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
