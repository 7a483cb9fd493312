"""The benchmark beside busy processes, and that these end with it."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import bench.__main__
from bench import busy
from bench.__main__ import app
from bench.contenders import ROOT
from bench.step import Case, make_nanogpt_config
from minitransformer.system.processors import list_processors

SMALL = Case(
    "a small one",
    16,
    make_nanogpt_config(vocabulary_size=128, context_length=64, layers=1, heads=1, width=64),
)


def test_a_step_is_raced_beside_busy_processes(torch, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.__main__, "CASES", (SMALL,))
    monkeypatch.setattr(bench.__main__, "list_processors", lambda: list_processors()[:1])
    record = tmp_path / "busy.json"
    done = CliRunner().invoke(app, ["busy", "--json", str(record)])
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    for load in ("none", "1", "2"):
        assert f"\n{load}  " in done.output
    written = json.loads(record.read_text())
    results = written["results"]
    assert written["machine"]["torch"] == torch.__version__
    assert [result["case"]["busy_processes"] for result in results] == [0, 1, 2]
    for result in results:
        assert result["benchmark"] == "busy"
        assert (result["case"]["name"], result["case"]["D"], result["case"]["threads"]) == (SMALL.name, 64, 1)
        assert result["ratio"] == result["peer_seconds"] / result["ours_seconds"]
        for role in ("ours", "peer"):
            assert result[f"{role}_factor"] == result[f"{role}_seconds"] / results[0][f"{role}_seconds"]


def test_busy_processes_have_sessions_of_their_own_and_end_with_the_block():
    with busy.keep_busy(2) as spinners:
        assert [spinner.poll() for spinner in spinners] == [None, None]
        if hasattr(os, "getsid"):
            assert [os.getsid(spinner.pid) for spinner in spinners] == [spinner.pid for spinner in spinners]
    assert all(spinner.returncode for spinner in spinners)


@pytest.mark.parametrize("reason", [KeyboardInterrupt, RuntimeError])
def test_busy_processes_end_with_whatever_stops_the_benchmark(reason):
    with pytest.raises(reason), busy.keep_busy(1) as spinners:
        raise reason
    assert spinners[0].returncode


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the number of a parent does not change")
def test_a_busy_process_ends_by_itself_if_its_parent_was_killed():
    other = os.getppid()  # not the parent of what this process starts
    ended = subprocess.run(
        [sys.executable, "-m", "bench.spinner", str(other)], cwd=ROOT, timeout=60, check=True
    )
    assert ended.returncode == 0
