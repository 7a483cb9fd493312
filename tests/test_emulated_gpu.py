"""The library on device arrays, without a device: one source for NumPy and CuPy, or these fail."""

import io
import sys

import numpy as np
import pytest
from common import emulated_cupy
from common.operations import SMALL_CASES, names, upstream

from minitransformer import gradcheck, reference, trace
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


@pytest.mark.parametrize("case", SMALL_CASES, ids=names(SMALL_CASES))
def test_every_operation_takes_device_arrays(cupy, case):
    """Also those that the models do not use. Gradients are returned, and added to arrays of the caller."""

    def everything(to):
        arrays = [None if array is None else to(array) for array in case.arrays()]
        y, saved = case.forward(*arrays, **{name: moved(value, to) for name, value in case.settings.items()})
        dy = to(upstream(to_numpy(y)))
        gradients = case.backward(dy, saved)
        owners = tuple(None if array is None else to(np.ones(array.shape)) for array in arrays)
        return y, *gradients, *case.backward(dy, saved, add_to=owners)

    for ours, theirs in zip(everything(np.asarray), everything(cupy.asarray), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert array_module(theirs) is cupy
            np.testing.assert_array_equal(ours, to_numpy(theirs))


def moved(value, to):
    """Return a setting with ``to`` applied to its arrays."""
    if isinstance(value, Mask):
        return Mask(*(moved(part, to) for part in value))
    return to(value) if isinstance(value, np.ndarray) else value


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
