"""The benchmark of a head with its loss: contenders compute the same, and a small race."""

import json
from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

import bench.__main__
from bench import cross_entropy
from bench.__main__ import app
from bench.cross_entropy import CONTENDERS, Case
from bench.usage import CLEAR
from minitransformer import dispatch
from minitransformer.system.processors import list_processors

SMALL = Case(N=64, V=1000, D=48)


def test_contenders_add_the_same_gradients_in_every_step(torch, monkeypatch):
    monkeypatch.setattr(dispatch, "misses", Counter())  # of other tests
    values = {who: [step(0), step(1)] for who in CONTENDERS for step in [CONTENDERS[who](SMALL, 1)]}
    for first, second in values.values():
        for loss, *gradients in zip(first, second, strict=True):
            assert len(loss) == cross_entropy.SAMPLES and len(gradients) == 1
        np.testing.assert_allclose(np.array(second[1:]), 2 * np.array(first[1:]), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(second[0], first[0])
    np.testing.assert_allclose(values["kernels"], values["pytorch"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(values["definition"], values["pytorch"], rtol=1e-4, atol=1e-6)


def test_the_command_races_and_measures_the_memory_of_a_call(torch, tmp_path, monkeypatch):
    monkeypatch.setattr(cross_entropy, "GPT2", SMALL)
    monkeypatch.setattr(bench.__main__, "list_processors", lambda: list_processors()[:1])
    record = tmp_path / "record.json"
    done = CliRunner().invoke(app, ["cross-entropy", "--json", str(record)])
    assert done.exit_code == 0, done.output
    assert "N=64, D=48, V=1000\n1 thread  " in done.output
    (result,) = json.loads(record.read_text())["results"]
    assert result["benchmark"] == "cross-entropy"
    assert result["case"]["N"] == 64 and result["case"]["threads"] == 1
    assert result["ratio"] == result["peer_seconds"] / result["ours_seconds"]
    assert result["other_seconds"]["definition"] > 0
    rate = 6 * 64 * 1000 * 48 / result["ours_seconds"] / 1e9
    assert result["ceiling_share"] == pytest.approx(rate / result["ceiling_gflops"])
    if CLEAR.exists():
        assert "peak memory of a call" in done.output
        assert result["ours_bytes"] >= 0 and result["peer_bytes"] >= 0
