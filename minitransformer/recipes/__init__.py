"""Recipes: all settings of a training run by name, as TOML files in this folder."""

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from typing import Any

from minitransformer.data.tasks import TASKS
from minitransformer.data.tokenizer import KINDS
from minitransformer.errors import InputError
from minitransformer.models.table import ARCHITECTURES, Architecture, find_architecture
from minitransformer.recipes.starting_model import OF_PRETRAINED, Pretrained, find_pretrained
from minitransformer.system.settings import check_settings, check_types, reject_unknown_settings, suggest
from minitransformer.training import TrainingArguments

CORPORA = ("python", "text", *TASKS)
DESCRIPTION = ("name", "description", "architecture", "corpus")
SETTINGS = ("text", "model", "training")
UNKNOWN = 1  # the size of a vocabulary that is not known before the text is read
PRETRAINED = "pretrained"  # the setting, and the tokenizer that comes with it


@reject_unknown_settings
@dataclass(frozen=True)
class TextSettings:
    """How text becomes tokens: ``tokenizer`` is ``"characters"``, ``"bpe"`` or ``"wordpiece"``; the latter
    two learn ``vocabulary_size`` tokens. It is ``"pretrained"`` where it comes with the model."""

    tokenizer: str = "characters"
    vocabulary_size: int = 0

    def __post_init__(self):
        check_types(self)
        if self.tokenizer == PRETRAINED and not self.vocabulary_size:
            return
        if self.tokenizer not in KINDS:
            raise InputError(f"tokenizer is {self.tokenizer!r}; expected one of {', '.join(KINDS)}")
        if self.tokenizer == "characters" and self.vocabulary_size:
            raise InputError("vocabulary_size is decided by the text where its tokens are characters")
        if self.tokenizer != "characters" and not 0 < self.vocabulary_size < 2**24:
            raise InputError(f"vocabulary_size is {self.vocabulary_size}; give how many tokens to learn")


@reject_unknown_settings
@dataclass(frozen=True)
class Recipe:
    """A named run: ``architecture`` is a row of the table, ``corpus`` "python", "text" or a task.

    ``model`` is the configuration, whose ``vocabulary_size`` is decided by the text. With ``pretrained`` the
    run starts from that model, else from random weights.
    """

    name: str
    description: str
    architecture: Architecture
    corpus: str
    model: Any
    training: TrainingArguments
    text: TextSettings = field(default_factory=TextSettings)
    pretrained: Pretrained | None = None

    def config(self, vocabulary_size):
        """Return the configuration for ``vocabulary_size`` tokens, or those of the pretrained model."""
        if self.pretrained is not None:
            vocabulary_size = self.pretrained.vocabulary_size
        return replace(self.model, vocabulary_size=vocabulary_size)

    def table(self):
        """Return the recipe as the dictionary that its TOML file holds, with the name."""
        table = {part.name: getattr(self, part.name) for part in fields(self)}
        for part in ("training", "text", PRETRAINED):
            table[part] = None if table[part] is None else asdict(table[part])
        return {**table, "architecture": self.architecture.name, "model": _list_given_settings(self.model)}


def list_recipes():
    """Return the names of all recipes, sorted."""
    folder = resources.files(__package__)
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def load_recipe(name, assignments=()):
    """Return the recipe ``name`` with ``assignments`` made, strings like ``"max_steps=500"``.

    A value is read as TOML, or as a string where that fails; of two for one name the last wins.
    ``"pretrained=DIR"`` lets the run start from the model in that folder, with its shape and its tokenizer,
    whatever the recipe has; only its dropout and a smaller ``context_length`` can then be set. Raises
    InputError for a recipe or a setting that does not exist (suggesting the nearest) and for an unfit value.
    """
    if name not in list_recipes():
        raise InputError(f"there is no recipe {name!r}{suggest(name, list_recipes())}")
    text = resources.files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return make_recipe({"name": name, **tomllib.loads(text)}, assignments)


def make_recipe(table, assignments=()):
    """Return the recipe that ``table`` (as ``Recipe.table`` returns it) describes, ``assignments`` made.

    Raises InputError as ``load_recipe`` does.
    """
    try:
        table = {**{part: {} for part in SETTINGS}, **table}
        for part in (*DESCRIPTION, *SETTINGS):
            if not isinstance(table[part], str if part in DESCRIPTION else dict):
                raise InputError(f"the recipe is damaged: {part} is {table[part]!r}")
        parts = {part: dict(table[part]) for part in SETTINGS}
        description = {part: table[part] for part in DESCRIPTION}
        for part, known in (("architecture", ARCHITECTURES), ("corpus", CORPORA)):
            if description[part] not in known:
                raise InputError(f"{part} is {description[part]!r}; expected one of {', '.join(known)}")
        architecture, given = ARCHITECTURES[description["architecture"]], table.get(PRETRAINED)
        pretrained = None if given is None else Pretrained(**given)
        folder = read_pretrained_folder(assignments)
        if folder is not None:
            pretrained, config = find_pretrained(folder)
            architecture = find_architecture(config)
            parts["model"] = _list_given_settings(config)
            parts["text"] = {"tokenizer": PRETRAINED}
        _assign(parts, assignments, architecture, pretrained)
        recipe = Recipe(
            **description | {"architecture": architecture},
            model=architecture.config(vocabulary_size=UNKNOWN, **parts["model"]),
            training=TrainingArguments(**parts["training"]),
            text=TextSettings(**parts["text"]),
            pretrained=pretrained,
        )
    except InputError:
        raise
    except (KeyError, TypeError) as error:
        raise InputError(f"the recipe is damaged: {error}") from None
    return recipe


def list_changed_settings(recipe):
    """Return what makes ``recipe`` of the recipe with its name: assignments as ``load_recipe`` takes them."""
    usual, own = load_recipe(recipe.name).table(), recipe.table()
    return [
        f"{setting}={_format(value)}"
        for part in SETTINGS
        for setting, value in own[part].items()
        if setting != "output_dir" and value != usual[part].get(setting)
    ]


def _assign(parts, assignments, architecture, pretrained):
    """Make ``assignments`` in the tables ``parts``."""
    model = architecture.config(vocabulary_size=UNKNOWN, **parts["model"])
    known = {
        "text": _list_names(TextSettings),
        "model": _list_names(architecture.config) - {"vocabulary_size"},
        "training": _list_names(TrainingArguments) - {"output_dir", "disable_tqdm"},
        "start": {PRETRAINED},
    }
    for assignment in assignments:
        setting, equals, written = assignment.partition("=")
        setting = setting.strip()
        if not equals:
            raise InputError(f"{assignment!r} is not name=value")
        check_settings([setting], set().union(*known.values()))
        part = next(part for part, names in known.items() if setting in names)
        if part == "start":
            continue
        value = _parse(written.strip())
        if pretrained is not None and part != "training":
            own = getattr(model, setting) if part == "model" else None
            _check_fits_pretrained(setting, value, own, pretrained)
        parts[part][setting] = value
    if pretrained is None and parts["text"].get("tokenizer") == PRETRAINED:
        raise InputError("the tokenizer 'pretrained' comes with a model; give that by pretrained=DIR")


def read_pretrained_folder(assignments):
    """Return the folder that ``assignments`` give as ``pretrained``, or None."""
    settings = (assignment.partition("=") for assignment in assignments)
    folders = [
        written.strip() for setting, equals, written in settings if equals and setting.strip() == PRETRAINED
    ]
    if not folders:
        return None
    folder = _parse(folders[-1])
    return folder if isinstance(folder, str) else folders[-1]  # 1_000 is the name of a folder here


def _check_fits_pretrained(setting, value, own, pretrained):
    if setting not in OF_PRETRAINED and value != own:
        what = "its tokenizer" if own is None else f"{setting} {own}"
        raise InputError(
            f"{setting} is {value!r}, but the model in {pretrained.folder} comes with {what}; of what is "
            f"pretrained only {' and a smaller '.join(OF_PRETRAINED)} can be set"
        )
    if setting == "context_length" and isinstance(value, int) and value > pretrained.context_length:
        raise InputError(
            f"context_length is {value}, but the model in {pretrained.folder} has "
            f"{pretrained.context_length} positions; set it to at most that"
        )


def _list_given_settings(config):
    """Return the fields of ``config`` but for the vocabulary's size and those that follow from others."""
    derived = [part.name for part in fields(config) if part.default is None]
    derived = {name for name in derived if replace(config, **{name: None}) == config}
    return {
        name: value for name, value in asdict(config).items() if name not in {"vocabulary_size", *derived}
    }


def _list_names(settings):
    return {field.name for field in fields(settings)}


def _parse(written):
    """Read ``written`` as TOML, or as a string where it is none."""
    try:
        written = {"True": "true", "False": "false"}.get(written, written)  # Python's spelling
        return tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        return written


def _format(value):
    """Write ``value`` so that ``_parse`` reads it."""
    return json.dumps(value) if isinstance(value, bool) else str(value)
