"""A folder for each run: new, never shared, and gone if nothing was written; output is never input."""

import contextlib
import json
import signal
import subprocess
import sys
import time

import pytest
from common.command_line import TEXT, TINY, answer, command, environment
from common.processes import running

from minitransformer.errors import InputError
from minitransformer.system.folders import lock_folder, make_new_folder


@pytest.mark.parametrize("output", ["runs/shakespeare", "."])
def test_a_run_inside_its_own_text(tmp_path, output):
    """Nothing that a run writes is learned from afterwards: the text is the same as before."""
    (tmp_path / "a.txt").write_text(TEXT)

    def run(*arguments):
        done = answer(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("train", "shakespeare", "--data", ".", "--output-dir", output, *TINY)
    run("attention", output, "--text", "the")
    score = json.loads(run("evaluate", output))
    assert score["text"] == "validation"
    assert json.loads(run("evaluate", output, "--data", ".")) == score
    assert json.loads(run("evaluate", output, "--data", "**/*.*")) == score
    run("train", "--resume", "--output-dir", output, "--set", "max_steps=3")
    run("train", "shakespeare", "--data", ".", "--output-dir", "runs/second", *TINY)
    first, second = (
        json.loads((tmp_path / each / "corpus.json").read_text()) for each in (output, "runs/second")
    )
    assert first["sha256"] == second["sha256"]


def test_a_folder_is_new_and_goes_if_nothing_was_written(tmp_path):
    wanted = tmp_path / "runs" / "sort"
    with make_new_folder(wanted) as first, make_new_folder(wanted) as second:
        assert (first, second) == (wanted, tmp_path / "runs" / "sort-2")
        assert first.is_dir() and second.is_dir()
        (second / "kept").touch()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["sort-2"]
    with pytest.raises(KeyboardInterrupt), make_new_folder(tmp_path / "new" / "sort"):
        raise KeyboardInterrupt
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    message = "file is a file; expected a folder to write to"
    with pytest.raises(InputError, match=message), make_new_folder(tmp_path / "file" / "sort"):
        pass


CLAIM = """
import sys, time
from pathlib import Path
from minitransformer.system.folders import lock_folder, make_new_folder
print("ready", flush=True)
sys.stdin.readline()
for _ in range(200):
    with make_new_folder(Path("runs/sort")) as folder:
        (folder / "mine").touch(exist_ok=False)
"""


def test_nobody_gets_the_same_folder(tmp_path):
    """Three processes take two hundred folders each, at the same time."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        claim = [sys.executable, "-c", CLAIM]
        racing = [stack.enter_context(running(claim, cwd=tmp_path, **pipes)) for _ in range(3)]
        for process in racing:
            assert process.stdout.readline() == "ready\n"
        for process in racing:
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in racing:
            process.communicate(timeout=120)
            assert process.returncode == 0
    assert len(list((tmp_path / "runs").iterdir())) == 600


def test_two_runs_started_at_once(tmp_path, compiled_kernels):
    (tmp_path / "text.txt").write_text(TEXT)
    task = "train", "shakespeare", "--data", "text.txt", *TINY
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        racing = [stack.enter_context(running(command(*task), cwd=tmp_path, **pipes)) for _ in range(2)]
        outputs = [process.communicate(timeout=120) for process in racing]
    assert [process.returncode for process in racing] == [0, 0], outputs
    for name in ("shakespeare", "shakespeare-2"):
        assert (tmp_path / "runs" / name / "model.safetensors").exists()
        assert sum(f"runs/{name} holds the model" in output for output, _ in outputs) == 1


@pytest.mark.parametrize(
    "arguments",
    [("pyton",), ("shakespeare",), ("shakespeare", "--data", "none.txt"), ("sort", "--device", "tpu")],
    ids=" ".join,
)
def test_a_start_that_failed_leaves_no_folder(tmp_path, arguments):
    assert answer("train", *arguments, cwd=tmp_path).returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_was_interrupted_leaves_no_folder(tmp_path):
    """Ctrl-C while it waits for another process that makes tokens."""
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "tokens").mkdir()
    with (
        lock_folder(tmp_path / "tokens"),
        running(
            command("train", "shakespeare", "--data", "text.txt"),
            cwd=tmp_path,
            env=environment(MINITRANSFORMER_CACHE=str(tmp_path)),
            stderr=subprocess.PIPE,
            text=True,
        ) as waiting,
    ):
        deadline = time.monotonic() + 60
        while not (tmp_path / "runs" / "shakespeare").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        waiting.send_signal(signal.SIGINT)
        _, errors = waiting.communicate(timeout=60)
    assert (waiting.returncode, errors) == (130, "")
    assert not (tmp_path / "runs").exists()
