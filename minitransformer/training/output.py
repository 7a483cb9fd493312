"""The output folder of a run: claimed at its start, and restored if the run ends before its first step."""

import contextlib
import shutil

from minitransformer.errors import InputError
from minitransformer.system.file_names import BEST, CONFIG, METRICS, WEIGHTS, WRITTEN
from minitransformer.system.files import remove_temporary_files
from minitransformer.system.folders import lock_folder
from minitransformer.training.checkpoints import find_checkpoints


@contextlib.contextmanager
def claim_folder(folder, resuming, overwriting=False):
    """Make ``folder`` if it does not exist, and lock it for this process; yield a function that undoes this.

    The function removes what a run has written there since, and the folder if it was made here. Raises
    InputError as ``check_output_dir`` does, or if another process has locked the folder, and OSError if it
    cannot be made.
    """
    check_output_dir(folder, resuming, overwriting)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with _explain_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        check_output_dir(folder, resuming, overwriting)  # again: another process may have started a run
        remove_temporary_files(folder)
        if overwriting and not resuming:
            _remove(_find_written(folder))
        before = _find_written(folder)
        with _explain_errors(folder):
            (folder / METRICS).touch(exist_ok=resuming)

        def undo():
            remove_temporary_files(folder)
            _remove(path for path in _find_written(folder) if path not in before)
            for path in made:
                with contextlib.suppress(OSError):  # it is not empty
                    path.rmdir()

        yield undo


def check_output_dir(folder, resuming, overwriting=False):
    """Raise InputError if ``folder`` is a file or, unless ``resuming`` or ``overwriting``, holds a run."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; expected a folder to write to")
    if resuming and (folder / WEIGHTS).exists() and not find_checkpoints(folder):
        raise InputError(f"{folder} holds a model but no checkpoint to resume; choose another output_dir")
    if not (resuming or overwriting) and folder.exists():
        signs = CONFIG, WEIGHTS, METRICS, f"{BEST}/{WEIGHTS}"
        if any((folder / name).exists() for name in signs) or find_checkpoints(folder):
            raise InputError(
                f"{folder} holds another run; continue it with --resume (resume_from_checkpoint=True), "
                "replace it by overwrite_output_dir=true, or choose another output_dir"
            )


@contextlib.contextmanager
def _explain_errors(folder):
    """Raise an OSError of the block again with a message about ``folder``."""
    try:
        yield
    except FileExistsError:
        raise InputError(f"{folder} holds another run; choose another output_dir") from None
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror}; choose another output_dir") from None


def _find_written(folder):
    """Return the paths in ``folder`` that runs write; no others are ever removed."""
    return [folder / name for name in (*WRITTEN, BEST) if (folder / name).exists()] + find_checkpoints(folder)


def _remove(paths):
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
