"""The benchmarks: small races through real processes, and what must stop them."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import contenders
from bench.__main__ import app, main
from bench.contenders import ContenderError, race, start_contenders
from bench.report import print_means, print_memory, print_page_faults, print_table, write_results
from bench.step import Case, compare, describe_pair, make_nanogpt_config
from minitransformer.errors import InputError
from minitransformer.system.processors import list_processors

RECORDS = Path(__file__).parents[2] / "bench" / "results"
CORES = list_processors()[:1]
SMALL = Case(
    "small", 16, make_nanogpt_config(vocabulary_size=128, context_length=64, layers=1, heads=1, width=64)
)
PLANTED = """
import os
import threading
import time
from bench.step import make_pytorch_step

def twice_the_rate(**settings):
    from bench import torch_gpt
    correct = torch_gpt.train_step
    def train_step(tensors, config, optimiser, ids, targets, learning_rate, max_grad_norm):
        return correct(tensors, config, optimiser, ids, targets, 2 * learning_rate, max_grad_norm)
    torch_gpt.train_step = train_step
    return make_pytorch_step(**settings)

def short_of_memory(**settings):
    raise MemoryError("no room for the tables")

def killed(**settings):
    return lambda number: os.kill(os.getpid(), 9)

def not_a_number():
    return lambda number: float("nan")

def pinned():
    print("this is not an answer")
    return lambda number: [len(os.sched_getaffinity(0)), int(os.environ["OPENBLAS_NUM_THREADS"])]

def steady():
    def step(number):
        time.sleep(0.1)
        return number
    return step

def restless():
    def spin():
        while True:
            pass
    threading.Thread(target=spin, daemon=True).start()
    return steady()
"""


def test_a_small_step_is_raced(torch, tmp_path, capsys):
    rounds = []
    result = compare(SMALL, CORES, advance=lambda: rounds.append(1))
    assert len(rounds) == 2
    assert result["benchmark"] == "step"
    assert result["peer"] == "pytorch-eager"
    assert result["case"] == {
        **{"B": 16, "T": 64, "H": 1, "K": 64, "causal": True, "dropout": 0.0, "dtype": "float32"},
        **{"threads": 1, "kernels": "fused", "layers": 1, "D": 64, "F": 256, "V": 128},
    }
    assert result["ratio"] == result["peer_seconds"] / result["ours_seconds"]
    assert 0 < result["ours_minimum_seconds"] <= result["ours_seconds"]
    assert 0 < result["peer_minimum_seconds"] <= result["peer_seconds"]
    assert result["ceiling_share"] > 0  # above 1 where the machine was busy during the ceiling's turns
    assert result["other_seconds"]["definition"] > 0
    assert result["ceiling_gflops"] > 0
    if sys.platform == "linux":
        assert 0 <= result["ours_page_faults"] < 100  # a step reuses the memory of the one before
        assert result["peer_page_faults"] >= 0
        assert result["ours_peak_bytes"] > 2**25 and result["peer_peak_bytes"] > 2**25

    write_results(tmp_path / "step.json", [result])
    written = json.loads((tmp_path / "step.json").read_text())
    assert written["results"] == [result]
    assert written["machine"]["torch"] == torch.__version__
    assert written["machine"]["cores"] >= 1
    print_table([result])
    print_page_faults([result])
    shown = capsys.readouterr().out
    assert "pytorch-eager" in shown and "page faults" in shown


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("name", ["attention", "memory", "step"])
def test_the_table_of_the_record_can_be_read(name, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    record = json.loads((RECORDS / f"{name}.json").read_text())
    if name == "memory":
        print_memory(record["results"], record["slopes"])
    else:
        print_table(record["results"])
    if name == "attention":
        print_means(record["means"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for part in CELLS[name]:
        assert part in shown
    if name != "memory":
        assert len(re.findall(r"\d%$", shown, flags=re.MULTILINE)) == len(record["results"])


CELLS = {
    "attention": [
        "forward + backward, causal, dropout 0.1, H=8, 2 threads\n"
        "2, 1024, 64   53.6 (51.1) ms    304 (282) ms   5.67       13.18      –      72%\n",
        "1 thread\nforward, full ",
    ],
    "memory": ["T=16384  129.8         131.1           –\nslope "],
    "step": [
        "2 layers, B=2, T=256, D=768, H=12, K=64, F=3072, V=50257\n"
        "1 thread    2.43 (2.42) s   2.91 (2.89) s   1.19        0.96      79%\n",
    ],
}


def test_a_peer_that_learns_something_else_is_refused(torch, planted):
    with (
        pytest.raises(ContenderError, match=r"do not compute the same: at step 2 .* no time was measured"),
        start_contenders(*describe_pair(SMALL, CORES, "planted:twice_the_rate")) as pair,
    ):
        race(*pair)


def test_a_peer_that_is_not_a_number_is_refused(planted):
    with (
        pytest.raises(ContenderError, match="do not compute the same: at step 1"),
        start_contenders(*(two("planted:steady", "planted:not_a_number"))) as pair,
    ):
        race(*pair)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("short_of_memory", "the peer ended with exit code 1: MemoryError: no room for the tables"),
        ("killed", "the peer ended with exit code -9: without a message"),
        ("missing", "the peer ended with exit code 1: AttributeError"),
    ],
)
def test_a_contender_that_dies_is_reported(planted, factory, message):
    with (
        pytest.raises(ContenderError, match=message),
        start_contenders(*two("planted:steady", f"planted:{factory}")) as pair,
    ):
        race(*pair)
    assert all(contender._process.returncode is not None for contender in pair)


def test_a_contender_that_spins_while_it_waits_is_refused(planted):
    with (
        pytest.raises(ContenderError, match=r"the peer kept .* cores busy while it waited"),
        start_contenders(*two("planted:steady", "planted:restless")) as pair,
    ):
        race(*pair)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins nobody")
def test_a_contender_has_its_cores_and_threads(planted):
    with start_contenders(("ours", "planted:pinned", {}, CORES)) as (contender,):
        assert contender.warm_up() == [[1, 1]] * contenders.WARM_UP


def two(ours, peer):
    return ("ours", ours, {}, CORES), ("the peer", peer, {}, CORES)


def test_parity_on_a_small_text(torch, tmp_path, monkeypatch):
    from bench.parity import compare_training

    monkeypatch.setenv("MINITRANSFORMER_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog.\n" * 40)
    small = ["context_length=8", "width=16", "heads=2", "layers=1", "max_steps=12", "warmup_steps=3"]
    result = compare_training(text, small)
    assert result["case"]["max_steps"] == 12
    assert list(result["largest_loss_difference"]) == ["first 10 steps", "first 12 steps"]
    assert result["largest_loss_difference"]["first 12 steps"] < 1e-5
    assert result["val_loss"]["ours"] == pytest.approx(result["val_loss"]["pytorch"], abs=1e-5)
    for setting in ("dropout=0.1", "activation=relu", "optim=sgd"):
        with pytest.raises(InputError, match=f"{setting.partition('=')[0]} is"):
            compare_training(text, [*small, setting])


COMMANDS = (
    [],
    ["step"],
    ["busy"],
    ["cross-entropy"],
    ["attention"],
    ["memory"],
    ["parity", "--data", "text.txt"],
)


@pytest.mark.parametrize("command", COMMANDS)
def test_without_pytorch_one_line_says_so(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(sys, "argv", ["bench", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == (
        "error: this command compares with PyTorch, which is not installed; run pip install '.[oracle]', "
        "or the README's command, which gets PyTorch without the libraries of a GPU"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(torch, command, tmp_path):
    done = CliRunner().invoke(app, [*command, "--json", str(tmp_path / "missing" / "record.json")])
    assert "record.json cannot be written: " in str(done.exception)


def test_the_commands_are_explained():
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "Race a GPT's training step" in shown
    assert "Train the shakespeare recipe" in shown
    assert "Race attention" in shown
    assert "on a busy machine" in shown
    assert "Race a head with its loss" in shown
