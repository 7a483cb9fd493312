"""Checkpoints of a run: folders ``checkpoint-STEP``, written atomically.

Each contains the model, as any model folder does; ``optimizer.safetensors``, the optimiser's moments by the
names of their parameters; ``trainer_state.json``, with the SHA-256 of its content; and, if the run keeps its
best model, a copy of that in ``best``. The examples and the dropout masks of a step are functions of the seed
and the step, so no state of random generators or of the data is stored.
"""

import hashlib
import json
import re
from itertools import takewhile
from pathlib import Path

import numpy as np

from minitransformer.arrays import array_module, to_numpy
from minitransformer.errors import ChangedSettingError, InputError
from minitransformer.pretrained.model_folder import assign, load_config, read_values
from minitransformer.pretrained.tensor_files import check_tensor, read_tensors, write_tensors
from minitransformer.system.file_names import BEST, CONFIG
from minitransformer.system.files import read_json, remove_folder, write_folder_atomically, write_json
from minitransformer.training.best import best_step, copy_best_to, saved_step

OPTIMISER, STATE = "optimizer.safetensors", "trainer_state.json"
NAME = re.compile(r"checkpoint-(\d+)")


def find_checkpoints(output_dir):
    """Return the checkpoint folders in ``output_dir`` by step, ascending."""
    found = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        match = NAME.fullmatch(folder.name)
        if match and folder.is_dir():
            found[int(match[1])] = folder
    return [found[step] for step in sorted(found)]


def save_checkpoint(output_dir, model, optimiser, state, save_model):
    """Write a checkpoint after ``state["step"]`` steps; ``save_model(folder)`` writes the model into it."""
    with write_folder_atomically(Path(output_dir) / f"checkpoint-{state['step']}") as temporary:
        save_model(temporary)
        write_tensors(temporary / OPTIMISER, _collect_moments(model, optimiser))
        write_json(temporary / STATE, {**state, "sha256": _hash(state)})
        copy_best_to(temporary, Path(output_dir), state["log_history"])


def load_checkpoint(folder, model, optimiser, args, datasets=None):
    """Load ``model`` and ``optimiser`` from the checkpoint ``folder``; return the saved state, a dictionary.

    ``datasets`` are the fingerprints of the run's data sets by name. Raises InputError if anything in the
    folder is damaged or belongs to another model, ChangedSettingError if the run cannot be continued with
    ``args`` or these data sets; model and optimiser are unchanged then.
    """
    state, values, moments = _read(folder, model, optimiser, args)
    _check_same_data(state.get("datasets"), datasets or {})
    xp = array_module(model.flat.values)
    assign(model, values)
    for name, parameter, moment in _iterate_moments(model, optimiser):
        moment[...] = xp.asarray(moments[name]).reshape(parameter.size)
    optimiser.steps = state["step"]
    return state


def remove_old_checkpoints(output_dir, step, model, optimiser, args):
    """Remove the oldest checkpoints, so that ``args.save_total_limit`` of those up to ``step`` remain.

    Raises InputError and removes nothing if the checkpoint of ``step`` cannot be read. Checkpoints of later
    steps are not counted: they are damaged, else the run would have been resumed from them.
    """
    newest = Path(output_dir) / f"checkpoint-{step}"
    old = list(takewhile(lambda folder: folder != newest, find_checkpoints(output_dir)))
    if len(old) < args.save_total_limit:
        return
    _read(newest, model, optimiser, args)
    for folder in old[: len(old) + 1 - args.save_total_limit]:
        remove_folder(folder)


def find_last_checkpoint(output_dir):
    """Return the newest checkpoint folder of ``output_dir``, or None."""
    return next(reversed(find_checkpoints(output_dir)), None)


def find_model_folder(folder):
    """Return the last checkpoint in ``folder`` if that is of an unfinished run, otherwise ``folder``."""
    last = find_last_checkpoint(folder)
    return Path(folder) if last is None or (Path(folder) / CONFIG).exists() else last


def _read(folder, model, optimiser, args):
    """Return the state, the parameters and the moments in ``folder``."""
    state = _read_state(folder / STATE)
    if f"checkpoint-{state['step']}" != folder.name:
        raise InputError(f"{folder / STATE}: step is {state['step']}; expected that of the folder's name")
    args.check_continues(state["args"])
    config = load_config(folder)
    if config != model.config:
        differing = [
            f"{name} is {getattr(config, name)} there and {value} here"
            for name, value in vars(model.config).items()
            if getattr(config, name) != value
        ]
        raise ChangedSettingError(f"{folder} holds another model: {', '.join(differing)}")
    values = read_values(folder, config, model.flat.values.dtype.name)
    if (folder / BEST).exists():
        expected = best_step(state["log_history"])
        if saved_step(folder / BEST) != expected:
            raise InputError(f"{folder / BEST} is damaged: expected the model of step {expected}")
        read_values(folder / BEST, config, model.flat.values.dtype.name)
    return state, values, _read_moments(folder / OPTIMISER, model, optimiser)


def _check_same_data(recorded, datasets):
    """Raise ChangedSettingError unless ``datasets`` are those ``recorded``, which earlier versions lack."""
    for name, fingerprint in datasets.items() if isinstance(recorded, dict) else ():
        if recorded.get(name, fingerprint) != fingerprint:
            raise ChangedSettingError(
                f"{name} is {fingerprint}, but the run to be resumed has {recorded[name]}; "
                "give the same, or start a new run in another folder"
            )


def _read_state(path):
    state = read_json(path)
    recorded = state.pop("sha256", None)
    if recorded is not None and recorded != _hash(state):
        raise InputError(f"{path} is damaged: its content does not match the SHA-256 it was saved with")
    types = {"step": int, "loss_sum": float, "loss_count": int, "args": dict, "log_history": list}
    for name, expected in types.items():
        if type(state.get(name)) is not expected:
            raise InputError(
                f"{path}: {name} is {state.get(name)!r:.80}; expected a value of type {expected.__name__}"
            )
    lines = state["log_history"]
    if not all(
        isinstance(line, dict)
        and isinstance(line.get("val_loss", ""), int | float | None)
        and type(line.get("step")) is int
        for line in lines
    ):
        raise InputError(f"{path}: log_history has lines that are not lines of metrics")
    return state


def _hash(state):
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _iterate_moments(model, optimiser):
    """Yield the name, the parameter and the array of every moment of every parameter."""
    for moment in optimiser.moments:
        for path, parameter in model.parameters().items():
            yield f"{moment}.{path}", parameter, getattr(optimiser, moment)[parameter.part]


def _collect_moments(model, optimiser):
    """Return the moments of every parameter by name, on the host, in the parameters' shapes."""
    return {
        name: np.ascontiguousarray(to_numpy(moment).reshape(parameter.shape))
        for name, parameter, moment in _iterate_moments(model, optimiser)
    }


def _read_moments(path, model, optimiser):
    shapes = {name: parameter.shape for name, parameter, _ in _iterate_moments(model, optimiser)}
    dtype = model.flat.values.dtype.name

    def check(header):
        for name, shape in shapes.items():
            check_tensor(path, name, header, shape)
            if header[name][1] != dtype:
                raise InputError(f"{path}: {name} has type {header[name][1]}; the model has {dtype}")
        if len(header) > len(shapes):
            raise InputError(f"{path} holds tensors that this run's optimiser does not have")
        return list(header)

    moments = read_tensors(path, check)
    if not all(np.isfinite(moment).all() for moment in moments.values()):
        raise InputError(f"{path} holds values that are not finite numbers")
    return moments
