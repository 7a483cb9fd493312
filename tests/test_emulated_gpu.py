"""The library on device arrays, without a device: one source for NumPy and CuPy, or these fail."""

import io
import sys

import numpy as np
import pytest
from common import emulated_cupy

from minitransformer import functional, gradcheck, reference, trace
from minitransformer.arrays import array_module, device_module, to_numpy
from minitransformer.data import Sequences, TokenWindows
from minitransformer.functional import Key, Mask
from minitransformer.generation.sampling import generate
from minitransformer.models import GPT, GPTConfig
from minitransformer.pretrained.model_folder import load_model, save_model
from minitransformer.training import Trainer, TrainingArguments

TOKENS = np.arange(200) * 7 % 13
SHAPES = [
    {"activation": "gelu_exact", "bias": False},
    {"activation": "gelu_tanh", "positions": "sinusoidal"},
    {"activation": "relu"},
]


@pytest.fixture
def cupy(monkeypatch):
    return emulated_cupy.install(monkeypatch)


def test_the_emulation_is_strict(cupy):
    x = cupy.asarray(np.ones(3))
    for mistake in (
        lambda: np.exp(x),
        lambda: np.concatenate([x, x]),
        lambda: np.asarray(x),
        lambda: x + np.ones(3),
    ):
        with pytest.raises(TypeError):
            mistake()
    with pytest.raises(AttributeError):
        cupy.errstate()


def test_the_names_it_offers_exist_in_cupy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed: .ci/run does")
    for name in (*emulated_cupy.FUNCTIONS, *emulated_cupy.TYPES):
        assert hasattr(cupy, name), name
    for name in (*emulated_cupy.METHODS, *emulated_cupy.ATTRIBUTES, "get", "T", "data"):
        assert hasattr(cupy.ndarray, name), name
    assert hasattr(cupy.add, "at")


def gpt(device, dtype="float32", **changes):
    settings = {
        "vocabulary_size": 13,
        "context_length": 8,
        "layers": 2,
        "heads": 2,
        "width": 8,
        "dropout": 0.2,
    }
    return GPT(GPTConfig(**settings | changes)).build(seed=1, dtype=dtype, device=device)


@pytest.mark.parametrize("changes", SHAPES, ids=lambda changes: changes["activation"])
@pytest.mark.parametrize("optim", ["adamw", "sgd"])
def test_training_is_the_same_bit_for_bit(cupy, tmp_path, changes, optim):
    rows = [TOKENS[start : start + length] for start, length in ((0, 8), (8, 3), (11, 5), (16, 8))]
    results = []
    for device in ("cpu", "cuda"):
        model = gpt(device, **changes)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / device),
            max_steps=4,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            optim=optim,
            momentum=0.9 if optim == "sgd" else 0.0,
            logging_steps=1,
            eval_steps=2,
            save_steps=2,
            save_total_limit=1,
            load_best_model_at_end=True,
        )
        datasets = TokenWindows(TOKENS, 8), Sequences(rows, rows)
        with reference():  # the stand-in for a GPU has no kernels
            Trainer(model, arguments, *datasets).train()
            continued = Trainer(gpt(device, **changes), arguments, *datasets)
            continued.train(resume_from_checkpoint=True)
            prediction = continued.predict(datasets[1])
        history = [{**line, "tokens_per_second": None} for line in continued.history]
        results.append((history, prediction, to_numpy(continued.model.flat.values)))
    (history, prediction, values), (device_history, device_prediction, device_values) = results
    assert history == device_history
    assert len(history) == 5
    np.testing.assert_array_equal(prediction.predictions, device_prediction.predictions)
    np.testing.assert_array_equal(values, device_values)


def test_generation_is_the_same(cupy, tmp_path):
    save_model(gpt("cuda"), tmp_path)
    texts = [list(generate(load_model(tmp_path, device=d), [1, 2], 20, seed=1)) for d in ("cpu", "cuda")]
    assert texts[0] == texts[1]


def test_gradcheck_and_trace_take_device_arrays(cupy):
    model = gpt("cuda", dtype="float64", layers=1, width=4)
    ids = cupy.asarray(TOKENS[:10].reshape(2, 5))
    batch = {"ids": ids, "targets": ids, "lengths": cupy.asarray(np.array([5, 2]))}
    gradcheck.check_model(model, batch, key=Key(1))
    lines = io.StringIO()
    with trace(lines):
        _, backward = model.loss(batch)
        backward({"tokens": 1.0})
    assert lines.getvalue().count("← ") == lines.getvalue().count("→ ") - lines.getvalue().count(" → ")


def test_operations_that_the_model_does_not_use(cupy):
    random = np.random.default_rng(0)
    q, k, v = (random.normal(size=(2, 3, heads, 4)) for heads in (4, 2, 2))
    bias = random.normal(size=(4, 1, 3))
    bias[0, 0, 1] = -1e30
    mask = Mask(np.array([3, 2]), np.array([1, 0]), 0)
    x, table = random.normal(size=(2, 3, 5)), random.normal(size=(7, 5))
    targets = np.array([[1, -100, 3], [0, 2, 4]])

    def everything(to):
        y, saved = functional.attention(
            to(q),
            to(k),
            to(v),
            mask=Mask(to(mask[0]), to(mask[1]), 0),
            bias=to(bias),
            dropout=0.2,
            key=Key(2),
        )
        yield from (y, *functional.attention_backward(y, saved))
        for pair in ("softmax", "log_softmax", "relu"):
            y, saved = getattr(functional, pair)(to(x))
            yield from (y, *getattr(functional, f"{pair}_backward")(y, saved))
        y, saved = functional.add_layer_norm(to(x), to(x), to(x[0, 0]), to(x[0, 1]))
        yield from (y, *functional.add_layer_norm_backward(y, saved))
        y, saved = functional.add_positions(to(x), to(table), positions=to(np.array([[0, 1, 1], [6, 5, 4]])))
        yield from (y, *functional.add_positions_backward(y, saved))
        y, saved = functional.linear_cross_entropy(
            to(x), to(table), to(table[:, 0]), targets=to(targets), label_smoothing=0.1
        )
        yield from (y, *functional.linear_cross_entropy_backward(1.0, saved))

    for ours, theirs in zip(everything(np.asarray), everything(cupy.asarray), strict=True):
        assert array_module(theirs) is cupy
        np.testing.assert_array_equal(ours, to_numpy(theirs))


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        ("NotADirectoryError(20, 'Not a directory', '/home/.cupy')", "CUPY_CACHE_DIR"),
        ("ImportError('libcudart.so.12')", "libcudart.*reinstall it"),
        ("ModuleNotFoundError('cupy')", "not installed"),
    ],
)
def test_a_cupy_that_cannot_be_imported_is_said_clearly(tmp_path, monkeypatch, failure, told):
    (tmp_path / "cupy.py").write_text(f"raise {failure}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(RuntimeError, match=told):
        device_module("cuda")


def test_no_gpu_is_said_clearly(cupy, monkeypatch):
    monkeypatch.setattr(cupy, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="needs an NVIDIA GPU and its driver"):
        device_module("cuda")
