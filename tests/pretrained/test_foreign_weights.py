"""Weights as others write them: what is sound loads, and what is not is named."""

import json

import ml_dtypes
import numpy as np
import pytest
from common.model_folders import IDS, change_config, change_tensors, random_model
from safetensors.numpy import load_file, save_file

from minitransformer.errors import InputError
from minitransformer.pretrained import gpt2
from minitransformer.pretrained.model_folder import assign, load_model, save_model
from minitransformer.pretrained.weight_files import make_prefix_pattern

WEIGHTS = "model.safetensors"


@pytest.fixture
def model():
    return random_model()


@pytest.fixture
def saved(model, tmp_path):
    save_model(model, tmp_path)
    return tmp_path


def renamed(folder, name_of):
    """Give every tensor in ``folder`` the name that ``name_of`` returns for it."""
    path = folder / WEIGHTS
    save_file({name_of(name): tensor for name, tensor in load_file(path).items()}, path)


def assert_same(folder, model):
    loaded = load_model(folder)
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded.flat.values, model.flat.values)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "transformer.",
        "_orig_mod.transformer.",
        "module.transformer.",
        "module._orig_mod.",
        "_orig_mod.module.",
    ],
)
def test_prefixes_of_what_was_wrapped_around_are_no_names(saved, model, prefix):
    def add_head(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()

    change_tensors(saved, add_head)
    renamed(
        saved,
        lambda name: (
            prefix.replace("transformer.", "") + name
            if "lm" in name
            else prefix + name.removeprefix("transformer.")
        ),
    )
    assert_same(saved, model)


@pytest.mark.parametrize("name", ["lm_head.weight", "_orig_mod.lm_head.weight"])
def test_a_tied_pair_that_was_saved_once(saved, model, name):
    change_tensors(saved, lambda tensors: tensors.update({name: tensors.pop("transformer.wte.weight")}))
    assert_same(saved, model)


def test_buffers_are_no_weights(saved, model):
    def add_buffers(tensors):
        for block in range(2):
            tensors[f"transformer.h.{block}.attn.bias"] = np.ones((1, 1, 8, 8), bool)
            tensors[f"h.{block}.attn.masked_bias"] = np.array(-1e4, np.float32)
            tensors[f"h.{block}.attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
        tensors["position_ids"] = np.arange(8)

    change_tensors(saved, add_buffers)
    assert_same(saved, model)


def test_types_may_be_mixed_in_one_file(saved, model):
    types = ("float64", "float32", "float16", ml_dtypes.bfloat16)

    def cast(tensors):
        for index, name in enumerate(sorted(tensors)):
            tensors[name] = tensors[name].astype(types[index % len(types)])

    change_tensors(saved, cast)
    np.testing.assert_allclose(load_model(saved).flat.values, model.flat.values, rtol=1e-2, atol=1e-6)


def test_bfloat16_is_read_by_its_bits(saved):
    def cast(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)

    change_tensors(saved, cast)
    values = load_model(saved).parameters()
    for name, path in {"wte.weight": "embedding.table", "h.1.ln_2.bias": "blocks.1.norm2.bias"}.items():
        written = load_file(saved / WEIGHTS)[f"transformer.{name}"]
        np.testing.assert_array_equal(values[path].value, written.astype(np.float32))


def test_special_values_of_bfloat16(tmp_path):
    """Every one of the 65,536 numbers."""
    from minitransformer.pretrained.tensor_files import read_tensors, write_tensors

    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    write_tensors(tmp_path / "every.safetensors", {"every": every})
    (read,) = read_tensors(tmp_path / "every.safetensors", lambda header: header).values()
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, every.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_types_that_are_not_read_are_named(saved, dtype):
    def cast(tensors):
        table = tensors["transformer.wte.weight"]
        tensors["transformer.wte.weight"] = table.astype(getattr(ml_dtypes, dtype))

    change_tensors(saved, cast)
    with pytest.raises(
        InputError, match=r"wte\.weight has type F8_E\dM\d; expected one of float16, bfloat16"
    ):
        load_model(saved)


def test_integers_are_no_weights(saved):
    change_tensors(saved, lambda tensors: tensors.update({"transformer.ln_f.bias": np.zeros(8, np.int8)}))
    with pytest.raises(InputError, match=r"ln_f\.bias has type I8; expected one of"):
        load_model(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({"wte.weight": np.zeros((13, 8), np.float32)}),
            r"holds wte\.weight twice: as .*wte",
        ),
        (lambda t: t.pop("transformer.h.1.mlp.c_fc.bias"), r"the tensor h\.1\.mlp\.c_fc\.bias is missing"),
        (lambda t: t.update({"score.weight": np.zeros((2, 8), np.float32)}), r"does not have: score\.weight"),
        (
            lambda t: t.update({"lm_head.weight": np.zeros((13, 8), np.float32)}),
            r"lm_head\.weight differs from",
        ),
        (lambda t: t.update({"lm_head.bias": np.zeros(13, np.float32)}), r"does not have: lm_head\.bias"),
        (
            lambda t: t.update({"transformer.h.0.attn.c_attn.weight": np.zeros((24, 8), np.float32)}),
            r"h\.0\.attn\.c_attn\.weight has shape \(24, 8\); expected \(8, 24\)",
        ),
    ],
)
def test_what_is_wrong_with_the_weights_is_named(saved, change, message):
    change_tensors(saved, change)
    with pytest.raises(InputError, match=message):
        load_model(saved)


# --- several files


def sharded(folder):
    """Put every second tensor in ``folder`` into a second file, as ``transformers`` does with large ones."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {
        name: f"model-{1 + index % 2:05}-of-00002.safetensors" for index, name in enumerate(sorted(tensors))
    }
    for file in set(places.values()):
        part = {name: tensors[name] for name in tensors if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def test_weights_in_several_files(saved, model):
    sharded(saved)
    assert_same(saved, model)


def test_weights_that_transformers_wrote_in_several_files(tmp_path, torch, transformers):
    config = transformers.GPT2Config(vocab_size=13, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with torch.no_grad():
        expected = theirs.double()(torch.from_numpy(IDS)).logits.numpy()
    logits, _ = load_model(tmp_path, dtype="float64")({"ids": IDS})
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-10)


def test_a_file_that_is_missing_among_several(saved):
    sharded(saved)
    (saved / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors is missing, one of the 2 files"):
        load_model(saved)


def test_a_damaged_file_among_several(saved):
    sharded(saved)
    path = saved / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors is damaged"):
        load_model(saved)


def test_a_tensor_that_no_file_holds(saved):
    sharded(saved)
    path = saved / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    name, _ = tensors.popitem()
    save_file(tensors, path)
    with pytest.raises(InputError, match=f"{name.removeprefix('transformer.')} is missing"):
        load_model(saved)


@pytest.mark.parametrize("places", [None, [], {}, {"wte.weight": 3}, {"a": ""}, {"a": "../b"}, {"a": "/b"}])
def test_an_index_that_is_none(saved, places):
    sharded(saved)
    (saved / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(InputError, match=r"index\.json: weight_map is .*; expected for each tensor a file"):
        load_model(saved)


# --- other formats


@pytest.mark.parametrize(
    ("name", "what", "argument"),
    [
        ("pytorch_model.bin", "can run any program and is not opened", ""),
        ("pytorch_model.bin.index.json", "can run any program and is not opened", ""),
        ("tf_model.h5", "transformers before version 5", ", from_tf=True"),
        ("flax_model.msgpack", "transformers before version 5", ", from_flax=True"),
        ("gpt2.Q8_0.gguf", "for llama.cpp", ", gguf_file='gpt2.Q8_0.gguf'"),
    ],
)
def test_other_formats_are_named_with_the_way_to_convert_them(saved, name, what, argument):
    (saved / WEIGHTS).rename(saved / name)
    with pytest.raises(InputError) as refused:
        load_model(saved)
    message = str(refused.value)
    assert message.startswith(f"{saved} holds {name} (")
    assert what in message and "and no model.safetensors; make one by: " in message
    code = message.split('python -c "')[1].removesuffix('"')
    compile(code, "code", "exec")
    assert code.endswith(f"M.from_pretrained('{saved}'{argument}).save_pretrained('{saved}')")


def test_the_conversion_of_pytorchs_format_works(saved, model, torch, transformers):
    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(saved / WEIGHTS).items()}
    (saved / WEIGHTS).unlink()
    torch.save(tensors, saved / "pytorch_model.bin")
    with pytest.raises(InputError) as refused:
        load_model(saved)
    exec(str(refused.value).split('python -c "')[1].removesuffix('"'), {})
    np.testing.assert_array_equal(load_model(saved).flat.values, model.flat.values)


def test_no_weights_at_all(saved):
    (saved / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing$"):
        load_model(saved)


# --- configurations


@pytest.mark.parametrize(
    "name",
    [
        "gelu_new",
        "gelu_pytorch_tanh",
        "gelu_python_tanh",
        "gelu_fast",
        "gelu_accurate",
        "gelu",
        "gelu_python",
        "relu",
    ],
)
def test_names_of_activations_mean_what_they_do_in_transformers(saved, torch, transformers, name):
    change_config(saved, activation_function=name)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(saved).double().eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(IDS)).logits.numpy()
    logits, _ = load_model(saved, dtype="float64")({"ids": IDS})
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6 if name == "gelu_fast" else 1e-10)


def without(folder, *names):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in names}))


def test_a_configuration_of_an_old_transformers(saved, model):
    without(saved, "dtype", "n_inner", "n_positions", "tie_word_embeddings", "minitransformer")
    change_config(
        saved,
        torch_dtype="float16",
        n_ctx=8,
        reorder_and_upcast_attn=True,
        summary_type="cls_index",
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
    )
    assert_same(saved, model)


def test_the_common_names_of_sizes(saved, model):
    without(saved, "n_positions", "n_embd", "n_layer", "n_head")
    change_config(saved, max_position_embeddings=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
    assert_same(saved, model)


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale_attn_by_inverse_layer_idx", True), ("scale_attn_weights", False), ("add_cross_attention", True)],
)
def test_what_would_compute_something_else_is_refused(saved, name, value):
    change_config(saved, **{name: value})
    with pytest.raises(InputError, match=f"{name} is {value}; only {not value} is supported"):
        load_model(saved)


def test_what_is_read_is_held_once(model):
    """Each array goes as the model gets it."""
    values = {path: parameter.value + 1 for path, parameter in model.parameters().items()}
    expected = {path: value.copy() for path, value in values.items()}
    assign(model, values)
    assert not values
    for path, parameter in model.parameters().items():
        np.testing.assert_array_equal(parameter.value, expected[path])


def test_the_pattern_of_prefixes_takes_nothing_else():
    for name in ("transformer_x.wte", "modules.wte", "h.0.attn", "wte.module.weight"):
        assert make_prefix_pattern(gpt2).match(name).end() == 0
