"""The benchmark of decoding: a small race through real processes, and what it counts."""

import numpy as np
import pytest

from bench import decode
from bench.contenders import ContenderError
from bench.decode import Case, compare, print_results
from minitransformer.models import GPTConfig
from minitransformer.system.processors import list_processors

SMALL = GPTConfig(vocabulary_size=101, layers=1, width=16, heads=2)
FLOAT32 = [(decode.OURS, "float32"), (decode.TORCH, "float32")]


def test_a_small_model_is_raced(torch, monkeypatch, capsys):
    monkeypatch.setattr(decode, "CONTENDERS", [*FLOAT32, (decode.OURS, "int8")])
    monkeypatch.setattr(decode, "TURNS", 1)
    results, rounds = [], []
    results = compare(list_processors()[:1], SMALL, advance=lambda: rounds.append(1))
    assert len(rounds) == 1
    assert [result["case"]["B"] for result in results] == [1, 1, 8, 8, 1]
    assert [result["measured"] for result in results] == ["token"] * 4 + ["prompt"]
    for result in results:
        assert [(one["name"], one["weights"]) for one in result["contenders"]] == decode.CONTENDERS
        assert all(0 < one["minimum_seconds"] <= one["seconds"] for one in result["contenders"])
    quality = results[0]["quality"]
    assert quality["float32"] == {**quality["float32"], "agreement": 1.0, "loss_difference": 0.0}
    assert 0.5 < quality["int8"]["agreement"] <= 1
    assert abs(quality["int8"]["loss_difference"]) < 0.1
    print_results(results)
    shown = capsys.readouterr().out
    assert "B=8, prompt 1000, 1 thread: a token of each row" in shown
    assert max(map(len, shown.splitlines())) <= 110


def test_other_tokens_are_refused(torch, monkeypatch):
    monkeypatch.setattr(decode, "CONTENDERS", [FLOAT32[0], (decode.OURS, "int8")])
    monkeypatch.setattr(decode, "_is_exact", lambda name: name != decode.MEMORY)
    with pytest.raises(ContenderError, match="do not compute the same: at step 1"):
        compare(list_processors()[:1], SMALL)


def test_the_bytes_of_a_token():
    config = GPTConfig(vocabulary_size=50257, layers=12, width=768)
    weights = 12 * 12 * 768**2 + 50257 * 768
    assert decode._bytes_of_a_token(Case(1, 0), config, 1) == weights
    held = 2 * 12 * 8 * 100 * 768
    assert decode._bytes_of_a_token(Case(8, 100), config, 2) == 2 * weights + 4 * held


def test_pytorchs_tokens_are_those_of_the_whole(torch):
    from bench import torch_gpt

    model = decode.draw_model(SMALL)
    tensors = torch_gpt.tensors_to_decode(model, torch.float32)
    ids = np.random.default_rng(0).integers(0, 101, (2, 9))
    cache = [[torch.zeros(2, 2, 9, 8) for _ in range(2)]]
    torch_gpt.decode(tensors, SMALL, torch.from_numpy(ids[:, :6]), cache, 0)
    for place in range(6, 9):
        found = torch_gpt.decode(tensors, SMALL, torch.from_numpy(ids[:, place : place + 1]), cache, place)
    expected, _ = model(ids)
    np.testing.assert_allclose(found.numpy(), expected[:, -1], atol=1e-5)
