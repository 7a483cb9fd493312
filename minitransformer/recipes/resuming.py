"""Which run a folder holds, to resume it."""

import difflib
from pathlib import Path

from minitransformer.errors import ChangedSettingError, InputError
from minitransformer.recipes import PRETRAINED, make_recipe, read_pretrained_folder
from minitransformer.recipes.starting_model import resolve_folder
from minitransformer.system.file_names import RUN
from minitransformer.system.files import read_json
from minitransformer.training.checkpoints import find_checkpoints


def load_resumed_recipe(name, output_dir, assignments, data):
    """Return the recipe and the data of the run in ``output_dir``, ``assignments`` made.

    Raises InputError if there is no run, or one of another recipe than ``name`` (if given).
    """
    path = Path(output_dir) / RUN
    if not path.exists():
        raise InputError(f"there is no run in {output_dir} to resume{_suggest_runs(output_dir)}")
    recorded = read_json(path)
    table = {"architecture": "gpt", **(recorded.get("recipe") or {})}  # once the only one, and not recorded
    earlier = make_recipe(table)
    recipe = make_recipe(table, _drop_same_start(assignments, earlier.pretrained, output_dir))
    if recipe.text != earlier.text:
        raise ChangedSettingError(
            f"the run in {output_dir} has the text settings {earlier.text}; they cannot change to "
            f"{recipe.text}: start a new run in another folder"
        )
    paths = recorded.get("data")
    if not isinstance(paths, list) or not all(isinstance(part, str) for part in paths):
        raise InputError(f"{path} is damaged: data is {paths!r}")
    if name is not None and name != recipe.name:
        raise InputError(f"{output_dir} holds a run of the recipe {recipe.name!r}, not of {name!r}")
    return recipe, data or [Path(part) for part in paths]


def _drop_same_start(assignments, pretrained, output_dir):
    """Return ``assignments`` without the model that the run started from; refuse any other."""
    folder = read_pretrained_folder(assignments)
    if folder is not None and (pretrained is None or resolve_folder(folder) != pretrained.folder):
        started = "random weights" if pretrained is None else pretrained.folder
        raise ChangedSettingError(
            f"pretrained is {folder}, but the run in {output_dir} has started from {started}; "
            "start a new run in another folder"
        )
    return [part for part in assignments if part.partition("=")[0].strip() != PRETRAINED]


def _suggest_runs(output_dir):
    """Return a hint to the runs that could have been meant."""
    folder = Path(output_dir)
    if find_checkpoints(folder):
        return f": its checkpoints are not of the command line ({RUN} is missing); resume it from Python"
    if (folder.parent / RUN).exists():
        return f"; did you mean {folder.parent}?"
    found = {path.parent.name: str(path.parent) for path in folder.parent.glob(f"*/{RUN}")}
    close = difflib.get_close_matches(folder.name, found, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(found[name] for name in close)}?"
    if found:
        return f"; there are {', '.join(sorted(found.values()))}"
    return "; leave out --resume to start one"
