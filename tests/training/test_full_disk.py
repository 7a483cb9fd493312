"""A disk that is full, at whatever file: nothing that was saved is lost."""

import contextlib
import errno
import math
import os
from itertools import count

import pytest
from common.processes import room_for
from common.tiny_runs import assert_same_end, names, tiny_trainer

from minitransformer.training import Callback


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The last checkpoint of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    tiny_trainer(folder).train()
    return folder / "checkpoint-10"


class DiskFull(Callback):
    """Fills the disk after a step, but for ``size`` bytes a file."""

    def __init__(self, step, size):
        self.step, self.size, self.block = step, size, contextlib.ExitStack()

    def on_step_end(self, trainer, result):
        if trainer.step == self.step:
            self.block.enter_context(room_for(self.size))

    def on_train_exit(self, trainer):
        self.block.close()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "metrics.jsonl"])
def test_a_full_disk_loses_nothing_that_was_saved(checkpoint, tmp_path, name):
    """``name`` is the file that does not fit."""
    if name == "metrics.jsonl":
        size, message = (checkpoint.parent / name).stat().st_size // 2, "File too large"
    else:
        size, message = (checkpoint / name).stat().st_size - 100, "run keeps the checkpoint of step 4"
    with pytest.raises(OSError, match=message):
        tiny_trainer(tmp_path / "run", callbacks=[DiskFull(7, size)]).train()
    assert names(tmp_path / "run") == ["checkpoint-4", "metrics.jsonl"]
    tiny_trainer(tmp_path / "run").train(resume_from_checkpoint=True)
    assert_same_end(tmp_path / "run", checkpoint.parent)


class FailingDisk(Callback):
    """After step 7 ``reached`` more files and folders reach the disk, and then none."""

    def __init__(self, reached):
        self.reached, self.left, self.fsync = reached, math.inf, os.fsync

    def on_step_end(self, trainer, result):
        if trainer.step == 7:
            self.left = self.reached

    def on_train_exit(self, trainer):
        self.left = math.inf

    def synchronise(self, descriptor):
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= 1
        self.fsync(descriptor)


def test_whichever_file_does_not_reach_the_disk_nothing_that_was_saved_is_lost(
    checkpoint, tmp_path, monkeypatch
):
    for reached in count():
        disk, folder = FailingDisk(reached), tmp_path / str(reached)
        monkeypatch.setattr("minitransformer.system.files.os.fsync", disk.synchronise)
        try:
            tiny_trainer(folder, callbacks=[disk]).train()
        except OSError:
            assert not list(folder.rglob("*.part"))
            tiny_trainer(folder).train(resume_from_checkpoint=True)
            assert_same_end(folder, checkpoint.parent)
        else:
            break
        finally:
            monkeypatch.undo()
    assert reached > 2 * len(names(checkpoint))
    assert_same_end(folder, checkpoint.parent)
