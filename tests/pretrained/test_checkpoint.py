"""Model folders: what transformers reads and writes, and files that something happened to."""

import json

import ml_dtypes
import numpy as np
import pytest
from common.model_folders import IDS, change_config, change_tensors, random_model
from safetensors.numpy import load_file, save_file

from minitransformer.errors import InputError
from minitransformer.layers import Linear, recompute
from minitransformer.models import GPT
from minitransformer.pretrained.model_folder import load_model, save_model

RANDOM = np.random.default_rng(0)


SHAPES = [
    {},
    {"bias": False, "activation": "gelu_exact"},
    {"positions": "sinusoidal", "activation": "relu", "feed_forward_width": 12, "dropout": 0.1, "eps": 1e-6},
]


@pytest.mark.parametrize("changes", SHAPES, ids=["gpt2", "nanogpt", "sinusoidal"])
def test_save_and_load_keeps_everything(tmp_path, changes):
    model = random_model(**changes)
    save_model(model, tmp_path, {"note": "kept"})
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded.flat.values, model.flat.values)
    assert json.loads((tmp_path / "config.json").read_text())["minitransformer"]["note"] == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_recomputed_blocks_are_saved_like_others(tmp_path):
    config = random_model().config
    model = GPT(config)
    model.blocks = [recompute(block) for block in model.blocks]
    model.build(seed=3)
    save_model(model, tmp_path)
    np.testing.assert_array_equal(load_model(tmp_path).flat.values, GPT(config).build(seed=3).flat.values)


def test_parameters_without_a_place_in_the_folder_are_named(tmp_path):
    model = GPT(random_model().config)
    model.extra = Linear(2, 2)
    with pytest.raises(TypeError, match=r"'gpt2' has no place for: extra\.bias, extra\.weight"):
        save_model(model.build(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", SHAPES, ids=["gpt2", "nanogpt", "sinusoidal"])
def test_transformers_computes_the_same_from_our_files(tmp_path, torch, transformers, changes):
    model = random_model(**changes)
    save_model(model, tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).double().eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(IDS)).logits.numpy()
    logits, _ = load_model(tmp_path, dtype="float64")({"ids": IDS})
    # the file holds the sinusoids in float32
    atol = 1e-5 if changes.get("positions") == "sinusoidal" else 1e-10
    np.testing.assert_allclose(logits, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
def test_we_compute_the_same_from_their_files(tmp_path, torch, transformers, activation):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=8, n_embd=8, n_layer=2, n_head=2, activation_function=activation
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs.double()(torch.from_numpy(IDS)).logits.numpy()
    logits, _ = load_model(tmp_path, dtype="float64")({"ids": IDS})
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-10)


def test_files_without_prefix_and_with_old_masks_load(tmp_path):
    """The names of the first published GPT-2 files."""
    model = random_model()
    save_model(model, tmp_path)
    tensors = {
        name.removeprefix("transformer."): value
        for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.float32))
    tensors["lm_head.weight"] = tensors["wte.weight"].copy()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_array_equal(load_model(tmp_path).flat.values, model.flat.values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_types_load(tmp_path, dtype):
    model = random_model()
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    cast = {
        name: tensor.astype(np.dtype(getattr(ml_dtypes, dtype, dtype))) for name, tensor in tensors.items()
    }
    cast["lm_head.weight"] = cast["transformer.wte.weight"]
    save_file(cast, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tolerance = {"float16": 1e-3, "bfloat16": 1e-2, "float64": 0}[dtype]
    np.testing.assert_allclose(load_model(tmp_path).flat.values, model.flat.values, rtol=tolerance, atol=1e-6)


@pytest.fixture
def saved(tmp_path):
    save_model(random_model(bias=False), tmp_path)
    return tmp_path


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="damaged"):
        load_model(saved)


def test_every_flipped_byte_is_noticed(saved):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    for place in np.linspace(0, len(content) - 1, 60).astype(int):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"model\.safetensors"):
            load_model(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("transformer.wte.weight"), "wte.weight is missing"),
        (lambda t: t.update({"transformer.wte.weight": np.zeros((2, 8), np.float32)}), r"shape \(2, 8\)"),
        (lambda t: t.update({"extra": np.zeros(2, np.float32)}), "does not have: extra"),
        (
            lambda t: t["transformer.wpe.weight"].fill(np.nan),
            "positions.table holds values that are not finite",
        ),
        (lambda t: t["transformer.ln_f.bias"].fill(1), "norm.bias is not what config.json says"),
        (lambda t: t.update({"lm_head.weight": np.zeros((13, 8), np.float32)}), "expected a tied head"),
    ],
)
def test_tampered_weights(saved, change, message):
    change_tensors(saved, change)
    with pytest.raises(InputError, match=message):
        load_model(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'; expected 'gpt2'"),
        ({"n_head": 3}, "cannot be divided into 3 heads"),
        ({"n_embd": "8"}, "config.json: "),
        ({"n_layer": 1}, r"holds 2 blocks; config\.json asks for 1"),
        ({"n_layer": 10**9}, "holds 2 blocks"),
        ({"n_positions": 10**13}, r"wpe.weight has shape \(8, 8\); expected \(10000000000000, 8\)"),
        ({"n_layer": 2.5}, "layers is 2.5; expected a value of type int"),
        ({"vocab_size": True}, "vocabulary_size is True"),
        ({"layer_norm_epsilon": -1.0}, "eps is -1.0; expected a positive number"),
        ({"layer_norm_epsilon": "x"}, "eps is 'x'"),
        ({"activation_function": ["gelu"]}, "activation_function is"),
        ({"embd_pdrop": [0.1]}, "dropout rates differ"),
        ({"activation_function": "swish"}, "activation_function is 'swish'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False; only True"),
        ({"attn_pdrop": 0.5}, "dropout rates differ"),
        ({"minitransformer": {"positions": "rotary"}}, "positions is 'rotary'"),
        ({"minitransformer": 3}, "config.json"),
    ],
)
def test_tampered_configuration(saved, changes, message):
    change_config(saved, **changes)
    with pytest.raises(InputError, match=message):
        load_model(saved)


def test_missing_and_unreadable_files(saved, tmp_path_factory):
    with pytest.raises(InputError, match="holds no trained model"):
        load_model(tmp_path_factory.mktemp("empty"))
    (saved / "run" / "checkpoint-20").mkdir(parents=True)
    save_model(random_model(), saved / "run" / "checkpoint-20")
    with pytest.raises(InputError, match=r"config.json is missing; there are .*run.checkpoint-20"):
        load_model(saved / "run")
    (saved / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        load_model(saved)
    (saved / "config.json").write_text("[]")
    with pytest.raises(InputError, match="holds a list; expected a JSON object"):
        load_model(saved)


def test_a_failed_save_keeps_the_old_model(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minitransformer.pretrained.tensor_files.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(random_model(), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
