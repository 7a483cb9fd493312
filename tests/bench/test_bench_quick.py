"""All benchmarks in one command: the page, what it leaves out, and how it ends."""

import json

import pytest
from typer.testing import CliRunner

from bench import attention, busy, contenders, cross_entropy, memory, quick, step
from bench.__main__ import app
from bench.contenders import ContenderError
from bench.quick import Benchmark
from minitransformer.system.processors import list_processors


def show(results):
    print(f"a table of {results}")


def fail():
    raise ContenderError("the peer [ended] with exit code 1")


def stop():
    raise KeyboardInterrupt


@pytest.fixture
def record(torch, tmp_path):
    """The file to be written."""
    return tmp_path / "all.json"


def run(monkeypatch, record, *benchmarks):
    monkeypatch.setattr(quick, "BENCHMARKS", benchmarks)
    return CliRunner().invoke(app, ["--json", str(record)])


def test_the_page_has_a_section_for_each(record, monkeypatch):
    done = run(monkeypatch, record, *(Benchmark(name, lambda name=name: [name], show) for name in "ab"))
    assert done.exit_code == 0, done.output
    assert "a table of ['a']\na table of ['b']\n\n2 benchmarks in 0 s\n" in done.output
    written = json.loads(record.read_text())
    assert (written["results"], written["failures"]) == (["a", "b"], {})
    assert written["machine"]["cores"] >= 1


def test_one_that_fails_does_not_stop_the_others(record, monkeypatch):
    failing, other = Benchmark("a", fail, show), Benchmark("b", lambda: ["b"], show)
    done = run(monkeypatch, record, failing, other)
    assert done.exit_code == 1
    assert "a failed: the peer [ended] with exit code 1" in done.output and "['b']" in done.output
    written = json.loads(record.read_text())
    assert written["results"] == ["b"]
    assert written["failures"] == {"a": "the peer [ended] with exit code 1"}


def test_ctrl_c_stops_all(record, monkeypatch):
    done = run(monkeypatch, record, Benchmark("a", lambda: ["a"], show), Benchmark("b", stop, show))
    assert done.exit_code == 130
    assert "a table of ['a']" in done.output
    assert "stopped after 1 of 2 benchmarks; nothing was written" in done.output
    assert not record.exists()


def test_a_file_before_a_command_is_refused(record):
    done = CliRunner().invoke(app, ["--json", str(record), "step"])
    assert str(done.exception) == "give --json after step"


def test_every_command_but_the_long_training_is_on_the_page():
    commands = {
        command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands
    }
    assert {benchmark.name for benchmark in quick.BENCHMARKS} == commands - {"parity"}


@pytest.mark.parametrize("module", [attention, busy, cross_entropy, step])
def test_quick_forms_take_few_turns_on_all_cores(module, monkeypatch):
    def compare(case, cores, turns):
        assert cores == list_processors() and turns == contenders.QUICK_TURNS
        return [case]

    monkeypatch.setattr(module, "compare", compare)
    assert 1 <= len(module.compare_quickly()) <= 4


def test_the_quick_form_of_memory_measures_two_lengths(monkeypatch):
    monkeypatch.setattr(memory, "compare", lambda length, cores: length)
    assert memory.compare_quickly() == list(memory.QUICK_LENGTHS) and len(memory.QUICK_LENGTHS) == 2
