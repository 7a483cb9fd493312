"""The folder ``best`` of a run: the model of the lowest validation loss, and of which step that is.

It lies outside of checkpoints and outlives them, so each checkpoint has the ``best`` of its time within it
(links to the same files, where the disk has links). A run that goes on from a checkpoint gets that one back:
a better model of a future that was given up is not its own.
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
    """Return the step of the lowest validation loss, the last of equals; None if nothing was judged."""
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


def keep_best_with(checkpoint, output_dir, history):
    """Put the best model of the run in ``output_dir`` into the folder ``checkpoint``, if it has been kept."""
    best = output_dir / BEST
    if saved_step(best) is not None and saved_step(best) == best_step(history):
        _link(best, checkpoint / BEST)


def put_best_back(output_dir, checkpoint, history):
    """Let ``best`` be what it was when ``checkpoint`` (None: there is none) was written.

    Checkpoints of earlier versions hold none; ``best`` may stay then if it is that of the right step.
    """
    best = output_dir / BEST
    remove_temporary_files(best)
    kept = None if checkpoint is None else checkpoint / BEST
    if kept is not None and kept.is_dir():
        if not _same(best, kept):
            with write_folder_atomically(best) as temporary:
                _link(kept, temporary)
    elif saved_step(best) is not None and saved_step(best) != best_step(history):
        remove_folder(best)


def _same(folder, other):
    files = [(folder / name, other / name) for name in (CONFIG, WEIGHTS)]
    return all(path.exists() and filecmp.cmp(path, theirs, shallow=False) for path, theirs in files)


def _link(source, destination):
    """Let ``destination`` hold the files of ``source``, which are replaced and never written to."""
    destination.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _link(path, destination / path.name)
            continue
        try:
            os.link(path, destination / path.name)
        except OSError:  # this disk has no links
            shutil.copy2(path, destination / path.name)
