"""``train``: runs that are stopped or diverge, and runs that are resumed or overwritten."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from common.command_line import SETTINGS, TASK, answer, assert_one_error, command, minitransformer
from common.processes import running

from minitransformer import __main__ as program
from minitransformer import command as commands
from minitransformer.recipes import load_recipe


def test_divergence_keeps_the_last_good_weights(folder):
    done = minitransformer(
        *("train", "shakespeare", "--data", "text.txt", "--output-dir", "diverged", *SETTINGS),
        *("--set", "learning_rate=1e10", "--set", "max_grad_norm=0", "--set", "warmup_steps=0"),
        *("--set", "save_steps=1", "--set", "optim=sgd"),
        cwd=folder,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("minitransformer: error: training diverged at step ")
    assert done.stderr.count("\n") == 1
    assert "diverged keeps the checkpoint of step " in done.stderr
    evaluated = minitransformer("evaluate", "diverged", cwd=folder)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "this is its checkpoint-" in evaluated.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(folder, sent, code):
    name = f"stopped-{code}"
    metrics = folder / name / "metrics.jsonl"
    with running(
        command(
            *("train", "shakespeare", "--data", "text.txt", "--output-dir", name, *SETTINGS),
            *("--set", "max_steps=100000", "--set", "eval_steps=100000", "--set", "save_steps=100000"),
        ),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as training:
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        training.send_signal(sent)
        output, errors = training.communicate(timeout=60)
    assert training.returncode == code
    assert errors == "\nstopping after this step; a second signal stops immediately\n"
    assert f"{name} holds the last checkpoint" in output
    assert f"train --resume --output-dir {name}" in output
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    (saved,) = (folder / name).glob("checkpoint-*")
    assert int(saved.name.partition("-")[2]) >= last >= 40
    assert minitransformer("generate", name, "--max-new-tokens", 3, cwd=folder).returncode == 0


def test_a_stopped_run_is_resumed_with_its_own_settings(folder):
    settings = *SETTINGS, "--set", "max_steps=20", "--set", "seed=7"
    started = minitransformer(
        "train", "shakespeare", "--data", "text.txt", "--output-dir", "going", *settings, cwd=folder
    )
    assert started.returncode == 0, started.stderr
    resumed = minitransformer(
        "train", "--resume", "--output-dir", "going", "--set", "max_steps=30", cwd=folder
    )
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "resumed after step 20" in resumed.stdout
    lines = [json.loads(line) for line in (folder / "going" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 10, 20, 30]
    assert json.loads((folder / "going" / "run.json").read_text())["recipe"]["training"]["seed"] == 7

    again = answer("train", "--resume", "--output-dir", "going", cwd=folder)
    assert (again.returncode, again.stderr) == (0, "")
    other = answer("train", "sort", "--resume", "--output-dir", "going", cwd=folder)
    assert "holds a run of the recipe 'shakespeare', not of 'sort'" in other.stderr
    changed = answer("train", "--resume", "--output-dir", "going", "--set", "seed=8", cwd=folder)
    assert "seed is 8, but the run to be resumed has 7" in changed.stderr
    retold = answer("train", "--resume", "--output-dir", "going", "--set", "tokenizer=bpe", cwd=folder)
    assert "vocabulary_size is 0" in retold.stderr
    widened = answer("train", "--resume", "--output-dir", "going", "--set", "width=32", cwd=folder)
    assert "holds another model" in widened.stderr


def test_resume_with_nothing_saved_starts_from_the_beginning(folder):
    """As after a kill before the first checkpoint."""
    run = folder / "fresh"
    run.mkdir()
    recipe = load_recipe("sort", ["max_steps=3", "layers=1"])
    (run / "run.json").write_text(json.dumps({"recipe": recipe.table(), "data": []}))
    (run / "metrics.jsonl").write_text("")
    done = answer("train", "sort", "--resume", "--output-dir", "fresh", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "there is no checkpoint in fresh: starting from the beginning" in done.stdout
    assert re.search(r"\d+ of 182 validation examples correct\.", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output-dir", "modle"], "there is no run in modle to resume; did you mean model"),
        (["--output-dir", "model/checkpoint-20"], "did you mean model?"),
        (["--output-dir", "zzz"], "there is no run in zzz to resume; there are "),
        (["--output-dir", "nowhere/run"], "to resume; leave out --resume to start one"),
        (["addition"], "there is no run in runs/addition to resume"),
    ],
)
def test_resuming_what_is_not_there_starts_nothing(folder, arguments, message):
    before = sorted(folder.rglob("*"))
    done = answer("train", *arguments, "--resume", cwd=folder)
    assert done.stdout == ""
    assert_one_error(done, message)
    assert sorted(folder.rglob("*")) == before


def test_a_run_is_overwritten_by_a_setting_and_resumed_without_harm(folder):
    def train(*arguments):
        return answer("train", *arguments, "--output-dir", "again", *TASK, cwd=folder)

    first = train("sort")
    assert first.returncode == 0, first.stderr
    assert "holds another run" in train("sort").stderr
    written = (folder / "again" / "checkpoint-3").stat().st_mtime_ns
    done = train("sort", "--set", "overwrite_output_dir=true")
    assert (done.returncode, done.stderr) == (0, "")
    overwritten = (folder / "again" / "checkpoint-3").stat().st_mtime_ns
    assert overwritten > written
    (folder / "again" / "notes.txt").write_text("mine")
    assert '"overwrite_output_dir": false' in (folder / "again" / "run.json").read_text()
    resumed = train("--resume", "--set", "overwrite_output_dir=true")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert (folder / "again" / "checkpoint-3").stat().st_mtime_ns == overwritten
    assert (folder / "again" / "notes.txt").read_text() == "mine"


class Interrupted:
    """Finds the command line's module, and is interrupted while it loads it."""

    def find_spec(self, name, path, target=None):
        if name == "minitransformer.command.app":
            raise KeyboardInterrupt


def test_ctrl_c_while_modules_are_loaded_ends_without_a_traceback(monkeypatch):
    monkeypatch.delitem(sys.modules, "minitransformer.command.app", raising=False)
    monkeypatch.delattr(commands, "app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 130
