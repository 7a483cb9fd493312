"""The folder ``best`` of a run: the model of the lowest validation loss, and the step that it is from.

It is kept when older checkpoints are removed. Each checkpoint contains a copy as of its own step (hard links
to the same files, where the file system has them). A run that is resumed from a checkpoint restores that
copy, because ``best`` may be from a later step, which the resumed run has not made yet.
"""

import contextlib
import filecmp
import os
import shutil

from minitransformer.errors import InputError
from minitransformer.system.file_names import BEST, CONFIG, WEIGHTS
from minitransformer.system.files import (
    read_json,
    remove_folder,
    remove_temporary_files,
    write_folder_atomically,
)


def validation_losses(history):
    """Yield the validation losses of the lines of ``history``."""
    for line in history:
        if line["val_loss"] is not None:
            yield line["val_loss"]


def best_step(history):
    """Return the step of the lowest validation loss, the last of equal ones; None without any."""
    best = min(validation_losses(history), default=None)
    steps = [line["step"] for line in history if line["val_loss"] is not None and line["val_loss"] == best]
    return steps[-1] if steps else None


def saved_step(folder):
    """Return the step of the model in ``folder``, or None if there is no such model."""
    with contextlib.suppress(InputError):
        ours = read_json(folder / CONFIG).get("minitransformer")
        if isinstance(ours, dict) and (folder / WEIGHTS).exists():
            return ours.get("step")
    return None


def copy_best_to(checkpoint, output_dir, history):
    """Copy the best model of the run in ``output_dir`` into the folder ``checkpoint``, if there is one."""
    best = output_dir / BEST
    if saved_step(best) is not None and saved_step(best) == best_step(history):
        _link(best, checkpoint / BEST)


def restore_best(output_dir, checkpoint, history):
    """Restore ``best`` as it was when ``checkpoint`` was written; None stands for the start of the run.

    Checkpoints of earlier versions contain no copy; then ``best`` is kept if its step is the right one.
    """
    best = output_dir / BEST
    remove_temporary_files(best)
    kept = None if checkpoint is None else checkpoint / BEST
    if kept is not None and kept.is_dir():
        if not _are_same(best, kept):
            with write_folder_atomically(best) as temporary:
                _link(kept, temporary)
    elif saved_step(best) is not None and saved_step(best) != best_step(history):
        remove_folder(best)


def _are_same(folder, other):
    files = [(folder / name, other / name) for name in (CONFIG, WEIGHTS)]
    return all(path.exists() and filecmp.cmp(path, theirs, shallow=False) for path, theirs in files)


def _link(source, destination):
    """Link the files of ``source`` in ``destination``: files here are replaced, never written to."""
    destination.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _link(path, destination / path.name)
            continue
        try:
            os.link(path, destination / path.name)
        except OSError:  # this file system has no hard links
            shutil.copy2(path, destination / path.name)
