"""A language model's head and loss on the pool against its definition, both against it in float64."""

import math
import tracemalloc

import numpy as np
import pytest
from common.kernel_pairs import LAYOUTS, check_owners, check_pair, laid_out, value_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from minitransformer import functional
from minitransformer.functional import IGNORED
from minitransformer.kernels.cpu import linear_cross_entropy as fused
from minitransformer.kernels.cpu import matrix_product
from minitransformer.kernels.cpu.threads import limit_threads, thread_count

DEFINITION = functional.linear_cross_entropy, functional.linear_cross_entropy_backward
FUSED = fused.linear_cross_entropy, fused.linear_cross_entropy_backward
BLOCK = 16  # columns


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Let blocks have some columns, and the logits of few be kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "SMALLEST_BLOCK", BLOCK)
        patch.setattr(fused, "BLOCK", 1)
        patch.setattr(fused, "KEPT_BYTES", 4 * 40 * 2 * BLOCK)  # of 40 rows, two blocks
        yield


def draw(seed, rows, width, classes, bias=True, ignored=0.2):
    """Return h, table and bias, and targets; ``rows`` is a shape."""
    random = np.random.default_rng(seed)
    h = random.standard_normal((*rows, width), np.float32)
    table = random.standard_normal((classes, width), np.float32) / np.float32(math.sqrt(width))
    targets = np.where(random.random(rows) < ignored, IGNORED, random.integers(0, classes, rows))
    return (h, table, random.standard_normal(classes, np.float32) if bias else None), targets


def check(arrays, **arguments):
    """Compare with the definition, given the sizes that errors are relative to.

    A loss is a sum over rows of numbers as large as logits. A probability has the logits' rounding as a
    factor, and so do gradients.
    """
    h, table, bias = arrays
    with np.errstate(all="ignore"):
        logits = h.reshape(-1, h.shape[-1]).astype(float) @ table.T + (0 if bias is None else bias)
    largest = max(1, np.abs(logits[np.isfinite(logits)]).max(initial=0))
    h_size, table_size = (max(1, np.abs(x[np.isfinite(x)]).max(initial=0)) for x in (h, table))
    rows = max(1, len(logits))
    sizes = rows, table_size, np.sqrt(rows) * h_size, np.sqrt(rows)
    sizes = [largest * size for size in sizes]
    return check_pair(DEFINITION, FUSED, arrays, np.float32(0.7), sizes=sizes, **arguments)


@settings(max_examples=80)
@given(
    st.integers(0, 2**32),
    st.sampled_from([(), (0,), (1,), (2, 3), (17,), (40,), (2, 0), (2, 50)]),
    st.sampled_from([1, 3, 8, 17, 40]),
    st.sampled_from([1, 7, 15, 16, 17, 31, 32, 33, 40, 64, 100]),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0, 0.3, 1]),
    st.lists(st.sampled_from(LAYOUTS), min_size=3, max_size=3),
)
def test_it_is_the_definition(seed, rows, width, classes, bias, label_smoothing, ignored, layouts):
    arrays, targets = draw(seed, rows, width, classes, bias, ignored)
    arrays = [laid_out(array, layout) for array, layout in zip(arrays, layouts, strict=True)]
    check(arrays, targets=targets, label_smoothing=label_smoothing)


@pytest.mark.parametrize("classes", [16, 40, 100])
def test_logits_of_ten_thousand(classes):
    arrays, targets = draw(1, (40,), 30, classes)
    arrays[0][:20] *= np.float32(1e4)
    arrays[2][classes // 2] = 1e4
    arrays[2][classes // 3] = -1e4
    check(arrays, targets=targets)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("hidden", [slice(0, 16), slice(16, 40), slice(3, 99), slice(90, 100)], ids=str)
def test_classes_that_a_bias_hides(hidden, label_smoothing):
    arrays, _ = draw(2, (40,), 30, 100)
    arrays[2][hidden] = -np.inf
    shown = np.flatnonzero(np.isfinite(arrays[2]))
    check(arrays, targets=shown[np.arange(40) % len(shown)], label_smoothing=label_smoothing)


def test_what_is_not_finite_reaches_the_result_as_in_the_definition():
    for row in (0, 5):  # of which one is ignored
        for value in (np.nan, np.inf):
            arrays, targets = draw(3, (12,), 8, 40, ignored=0)
            targets[5] = IGNORED
            arrays[0][row, 2] = value
            check(arrays, targets=targets)


def test_all_rows_ignored():
    arrays, targets = draw(4, (40,), 30, 100, ignored=1)
    total, *gradients = value_and_gradients(FUSED, arrays, np.float32(1), targets=targets)
    assert total == 0 and total.shape == () and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_added(bias):
    arrays, targets = draw(5, (40,), 30, 100, bias)
    check_owners(FUSED, arrays, np.float32(0.5), targets=targets)
    _, saved = fused.linear_cross_entropy(*arrays, targets=targets)
    _, alone, _ = fused.linear_cross_entropy_backward(np.float32(0.5), saved)
    tied = np.ones((30, 100), np.float32)  # the transposed gradient of a table
    _, dtable, _ = fused.linear_cross_entropy_backward(np.float32(0.5), saved, add_to=(None, tied.T, None))
    assert np.shares_memory(dtable, tied)
    np.testing.assert_allclose(tied.T, alone + 1, atol=1e-5)


def test_backward_may_run_twice():
    arrays, targets = draw(6, (40,), 30, 100)
    _, saved = fused.linear_cross_entropy(*arrays, targets=targets, label_smoothing=0.1)
    assert 0 < len(saved.kept) < 7  # some logits are kept, others are computed anew
    first, second = (fused.linear_cross_entropy_backward(np.float32(1), saved) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_logits_that_are_kept_change_nothing(monkeypatch):
    arrays, targets = draw(7, (40,), 30, 100)
    results = []
    for kept in (0, 4 * 40 * BLOCK, 10**9):
        monkeypatch.setattr(fused, "KEPT_BYTES", kept)
        results.append(value_and_gradients(FUSED, arrays, np.float32(1), targets=targets))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_the_same_bits_on_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(matrix_product, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(fused, "SMALLEST_BLOCK", 64)
    arrays, targets = draw(8, (150,), 40, 200)
    results = []
    for count in range(1, thread_count() + 1):
        with limit_threads(count):
            for _ in range(3):
                results.append(value_and_gradients(FUSED, arrays, np.float32(1), targets=targets))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_memory_does_not_grow_with_rows_times_classes(monkeypatch):
    monkeypatch.setattr(fused, "KEPT_BYTES", 0)
    monkeypatch.setattr(fused, "BLOCK", 2**12)
    peaks = []
    for factor in (1, 4):
        arrays, targets = draw(9, (256 * factor,), 8, 512 * factor)
        value_and_gradients(FUSED, arrays, np.float32(1), targets=targets)
        tracemalloc.start()
        _, saved = fused.linear_cross_entropy(*arrays, targets=targets)
        kept = tracemalloc.get_traced_memory()[0]
        fused.linear_cross_entropy_backward(np.float32(1), saved)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert kept < 64 * 256 * factor
    assert peaks[1] < 5 * peaks[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": np.full(9, 5)},
        {"targets": np.full(9, -1)},
        {"targets": np.zeros(9)},
        {"targets": np.zeros(8, int)},
        {"label_smoothing": 1.5},
        {"table": np.ones((5, 3), np.float32)},
        {"bias": np.ones(4, np.float32)},
        {"table": np.ones((5, 4))},
    ],
    ids="-".join,
)
def test_bad_input_is_refused_in_the_same_words(wrong):
    arguments = {"h": np.ones((9, 4), np.float32), "table": np.ones((5, 4), np.float32), "bias": None}
    arguments |= {"targets": np.zeros(9, int), **wrong}
    errors = []
    for forward in (DEFINITION[0], FUSED[0]):
        settings = {name: value for name, value in arguments.items() if name not in ("h", "table", "bias")}
        with pytest.raises((TypeError, ValueError)) as error:
            forward(arguments["h"], arguments["table"], arguments["bias"], **settings)
        errors.append((error.type, str(error.value)))
    assert errors[0] == errors[1]
