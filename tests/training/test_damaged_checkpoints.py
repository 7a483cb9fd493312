"""A run whose checkpoints something happened to is resumed from the newest sound one."""

import shutil
from pathlib import Path

import pytest
from common.tiny_runs import (
    StopAt,
    StoppedError,
    all_bytes,
    assert_same_end,
    fail,
    saved_steps,
    tiny_model,
    tiny_trainer,
)

from minitransformer.errors import InputError
from minitransformer.pretrained.model_folder import load_model

FILES = ["config.json", "model.safetensors", "optimizer.safetensors", "trainer_state.json"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    tiny_trainer(folder).train()
    return folder


@pytest.fixture
def stopped(tmp_path):
    """A run stopped after step 9, with checkpoints of steps 4 and 8."""
    with pytest.raises(StoppedError):
        tiny_trainer(tmp_path / "run", callbacks=[StopAt("on_step_end", 9, fail)]).train()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in FILES for damage in (truncate, Path.unlink)),
        *((name, flip) for name in FILES if name != "config.json"),  # which people edit: it has no checksum
    ],
)
def test_from_a_damaged_checkpoint_it_goes_back_to_the_one_before(stopped, uninterrupted, name, damage):
    damage(stopped / "checkpoint-8" / name)
    with pytest.warns(UserWarning, match=f"checkpoint-8.*{name}.*; resuming after step 4"):
        tiny_trainer(stopped).train(resume_from_checkpoint=True)
    assert_same_end(stopped, uninterrupted)
    assert load_model(stopped / "checkpoint-8").config == tiny_model().config


def test_a_damaged_checkpoint_is_not_counted_and_does_not_keep_old_ones_from_going(stopped, uninterrupted):
    settings = {"save_steps": 1, "save_total_limit": 1}
    truncate(stopped / "checkpoint-8" / "model.safetensors")
    with pytest.warns(UserWarning, match="resuming after step 4") as told, pytest.raises(StoppedError):
        tiny_trainer(stopped, callbacks=[StopAt("on_step_end", 7, fail)], **settings).train(
            resume_from_checkpoint=True
        )
    assert len(told) == 1
    assert saved_steps(stopped) == [6, 8]
    with pytest.warns(UserWarning, match="resuming after step 6") as told:
        tiny_trainer(stopped, **settings).train(resume_from_checkpoint=True)
    assert len(told) == 1
    assert saved_steps(stopped) == [10]
    assert_same_end(stopped, uninterrupted)


def test_a_checkpoint_by_the_name_of_another_step_is_damaged(stopped, uninterrupted):
    (stopped / "checkpoint-8").rename(stopped / "checkpoint-9")
    with pytest.warns(UserWarning, match="step is 8; expected that of the folder's name"):
        tiny_trainer(stopped).train(resume_from_checkpoint=True)
    assert_same_end(stopped, uninterrupted)


def test_if_all_are_damaged_it_says_so_and_changes_nothing(stopped):
    truncate(stopped / "checkpoint-8" / "model.safetensors")
    truncate(stopped / "checkpoint-4" / "optimizer.safetensors")
    before = all_bytes(stopped)
    with pytest.raises(InputError, match=r"no checkpoint in .* can be resumed: .*model.*damaged.*optimizer"):
        tiny_trainer(stopped).train(resume_from_checkpoint=True)
    assert all_bytes(stopped) == before


def test_a_model_without_checkpoints_is_never_trained_over(tmp_path):
    tiny_trainer(tmp_path / "run", max_steps=2).train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a model but no checkpoint to resume"):
        tiny_trainer(tmp_path / "run", max_steps=4).train(resume_from_checkpoint=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
