"""The benchmarks of attention: small races and measurements through real processes."""

import json

import pytest
from typer.testing import CliRunner

import bench.__main__
from bench import attention, memory
from bench.__main__ import app
from bench.attention import Case, compute_means
from bench.contenders import ContenderError
from minitransformer.system.processors import list_processors

CORES = list_processors()[:1]
SMALL = Case(T=64, B=2, causal=True, backward=True)
PLANTED = """
from bench import attention

def not_causal(**settings):
    return attention.make_step(**{**settings, "causal": False})

def other_dropout(**settings):
    return attention.make_step(**{**settings, "dropout": 0.4})

def dropout_forgotten(**settings):
    from torch.nn import functional
    correct = functional.scaled_dot_product_attention
    def forgotten(*arguments, dropout_p, **others):
        return correct(*arguments, **others)
    functional.scaled_dot_product_attention = forgotten
    return attention.make_step(**settings)

def gradients_doubled(**settings):
    step = attention.make_step(**settings)
    def doubled(number):
        y, *gradients = step(number)
        return [y, *([2 * number for number in gradient] for gradient in gradients)]
    return doubled
"""


@pytest.fixture(scope="module")
def small_race(torch):
    """The result of a race."""
    return attention.compare(SMALL, CORES)


@pytest.fixture
def raced_before(monkeypatch, small_race):
    """Let the small race not be run again."""
    compare = attention.compare

    def remembered(case, *arguments, **settings):
        return small_race if case == SMALL else compare(case, *arguments, **settings)

    monkeypatch.setattr(attention, "compare", remembered)


def test_a_small_race(small_race):
    result = small_race
    assert result["case"] == {
        **{"pass": "forward + backward", "B": 2, "T": 64, "H": attention.HEADS, "K": 64, "causal": True},
        **{"dropout": 0.0, "dtype": "float32", "threads": 1, "kernels": "fused"},
    }
    assert result["ratio"] == result["peer_seconds"] / result["ours_seconds"]
    assert result["other_seconds"]["definition"] > 0
    entries = 64 * 65 // 2
    assert result["gflop"] == 14 * 2 * attention.HEADS * entries * 64 / 1e9
    share = result["gflop"] / result["ours_seconds"] / result["ceiling_gflops"]
    assert result["ceiling_share"] == pytest.approx(share)


def test_under_dropout_ours_is_compared_with_the_definition(torch, planted):
    case = Case(T=128, B=2, dropout=0.5, backward=True)
    result = attention.compare(case, CORES)
    assert list(result["other_seconds"]) == ["definition"]
    with pytest.raises(ContenderError, match="do not compute the same"):
        attention.compare(case, CORES, definition_factory="planted:other_dropout")
    with pytest.raises(ContenderError, match="applied no dropout"):
        attention.compare(case, CORES, peer_factory="planted:dropout_forgotten")


def test_definitions_must_not_pass_for_kernels(torch, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with pytest.raises(ContenderError, match="kernels refused attention"):
        attention.compare(SMALL, CORES)


@pytest.mark.parametrize("mistake", ["not_causal", "gradients_doubled"])
def test_a_peer_that_computes_something_else_is_refused(torch, planted, mistake):
    with pytest.raises(ContenderError, match="do not compute the same"):
        attention.compare(SMALL, CORES, peer_factory=f"planted:{mistake}")


def test_means_are_geometric_and_of_the_headline_alone():
    def result(ratio, **changed):
        case = {"threads": 1, "pass": "forward", "causal": True, "K": 64, "dropout": 0.0, "T": 512}
        return {"ratio": ratio, "case": case | changed}

    results = [
        result(1.0),
        result(4.0, T=4096),
        result(9.0, T=128),
        result(9.0, K=80),
        result(9.0, dropout=0.1),
    ]
    causal, full = compute_means([*results, result(3.0, causal=False)])
    assert causal == {
        **{"threads": 1, "pass": "forward", "mask": "causal"},
        **{"mean_ratio": pytest.approx(2.0), "smallest_ratio": 1.0},
    }
    assert (full["mask"], full["mean_ratio"]) == ("full", pytest.approx(3.0))


def test_the_command_races_draws_and_records(raced_before, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "CASES", (Case(T=512), SMALL))
    monkeypatch.setattr(bench.__main__, "list_processors", lambda: CORES)
    record, picture = tmp_path / "attention.json", tmp_path / "attention.png"
    done = CliRunner().invoke(app, ["attention", "--json", str(record), "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    assert "geometric mean" in done.output
    written = json.loads(record.read_text())
    assert written["machine"]["numba"]
    assert [result["case"]["T"] for result in written["results"]] == [512, SMALL.T]
    assert written["means"][0]["smallest_ratio"] == written["results"][0]["ratio"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_memory_of_kernels_is_linear_and_of_the_definition_quadratic(torch, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "LENGTHS", (1024, 2048))
    monkeypatch.setattr(bench.__main__, "list_processors", lambda: CORES)
    record, picture = tmp_path / "memory.json", tmp_path / "memory.png"
    done = CliRunner().invoke(app, ["memory", "--json", str(record), "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    assert "slope" in done.output
    written = json.loads(record.read_text())
    results, slopes = written["results"], written["slopes"]
    assert [result["case"]["T"] for result in results] == [1024, 2048]
    assert 0.7 < slopes["ours"] < 1.1 and slopes["definition"] > 1.7
    whole = 4 * 8 * 64 * 2048 * 4  # y, dq, dk and dv
    # a little of it lies in memory that the tiny call before had freed
    assert 0.9 * whole < results[1]["ours_bytes"] < 1.3 * whole
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(torch, option, tmp_path):
    done = CliRunner().invoke(app, ["memory", option, str(tmp_path / "missing" / "memory.png")])
    assert "memory.png cannot be written: " in str(done.exception)
    taken = tmp_path / "folder.png"
    taken.mkdir()
    done = CliRunner().invoke(app, ["memory", option, str(taken)])
    assert "folder.png cannot be written: it is a folder" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_what_was_measured_is_shown_when_it_is_stopped(raced_before, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "CASES", (SMALL, Case(T=128)))
    monkeypatch.setattr(bench.__main__, "list_processors", lambda: CORES)
    measure = attention.compare

    def stopped_at_the_second(case, cores, **settings):
        if case.T == 128:
            raise KeyboardInterrupt
        return measure(case, cores, **settings)

    monkeypatch.setattr(attention, "compare", stopped_at_the_second)
    record = tmp_path / "attention.json"
    done = CliRunner().invoke(app, ["attention", "--json", str(record)])
    assert done.exit_code == 130
    assert "stopped after 1 of 2 races; nothing was written" in done.output
    assert "T=64" in done.output and not record.exists()


@pytest.mark.parametrize("command", ["attention", "memory"])
def test_a_picture_of_no_known_kind_is_refused_before_anything_is_measured(torch, command):
    done = CliRunner().invoke(app, [command, "--plot", "picture.txt"])
    assert "cannot be written to picture.txt; expected a name that ends in .png" in str(done.exception)
