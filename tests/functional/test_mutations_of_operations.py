"""Planted mistakes in the operations and in the rules that they share; see ``mutations``."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from common.masks import check_visible
from common.mutations import mutated, named, run
from common.operations import SMALL_CASES, check_adds

from minitransformer import functional
from minitransformer.functional import Mask
from minitransformer.gradcheck import GradientError, check_operation


def check_gradients(operation, backward):
    """Check ``backward`` in all variants of ``operation``."""
    for case in SMALL_CASES:
        if case.operation == operation:
            check_operation(case.forward, backward, *case.arrays(), **case.settings)


def check_sums(operation, backward):
    """Check that ``backward`` adds to what was there."""
    for case in SMALL_CASES:
        if case.operation == operation:
            check_adds(case, backward)


class Operation(NamedTuple):
    """A mistake in the backward of an operation, or in the function ``place`` of the same file."""

    operation: str
    mistake: str
    old: str
    new: str
    place: str | None = None
    check: Callable = check_gradients

    def backward(self, old, new):
        """Return the backward with ``old`` replaced by ``new``."""
        name = f"{self.operation}_backward"
        module = inspect.getmodule(inspect.unwrap(getattr(functional, name)))
        return run(mutated(inspect.getsource(module), old, new, self.place or name), module, {})[name]


NORM_WITH_GAIN_INSIDE = """\
g = dy * gain
mean_g = g.mean(axis=-1, keepdims=True)
mean_g_x_hat = (dy_x_hat * gain).mean(axis=-1, keepdims=True)
dx = g
dx -= mean_g
dx -= x_hat * mean_g_x_hat
dx *= r
"""
NORM_WITH_GAIN_OUTSIDE = """\
dx = dy - dy.mean(axis=-1, keepdims=True) - x_hat * dy_x_hat.mean(axis=-1, keepdims=True)
dx *= gain * r
"""
ADD_ROWS = "xp.add.at(owner, ids.reshape(-1), rows.reshape(-1, width))"

OPERATIONS = [
    Operation("linear", "bias gradient missing", "dy_rows.sum(axis=0)", "0 * dy_rows.sum(axis=0)"),
    Operation("linear", "bias gradient of one row only", "dy_rows.sum(axis=0)", "dy_rows[0]"),
    Operation(
        "linear",
        "weight gradient transposed",
        "add_product(weight_owner, flatten_rows(x).T, dy_rows)",
        "(dy_rows.T @ flatten_rows(x)).reshape(weight.shape)",
    ),
    Operation(
        "linear",
        "weight not transposed",
        "weight.T",
        "weight.reshape(weight.shape[::-1])",
    ),
    Operation(
        "linear",
        "overwritten, not added",
        "owner[part] += a[part] @ b",
        "owner[part] = a[part] @ b",
        "add_product",
        check_sums,
    ),
    Operation(
        "linear",
        "added twice",
        "add_product(weight_owner, flatten_rows(x).T, dy_rows)",
        "add_product(weight_owner, flatten_rows(x).T, dy_rows).copy()",
        None,
        check_sums,
    ),
    Operation("softmax", "sum dropped", "dy - (dy * y).sum(axis=-1, keepdims=True)", "dy"),
    Operation("softmax", "sum without its weights", "(dy * y).sum", "dy.sum"),
    Operation(
        "softmax",
        "sum over all rows together",
        "(dy * y).sum(axis=-1, keepdims=True)",
        "(dy * y).sum(keepdims=True)",
    ),
    Operation("log_softmax", "probabilities dropped", "xp.exp(y)", "1"),
    Operation(
        "log_softmax", "sum of the upstream gradient taken for 1", "dy.sum(axis=-1, keepdims=True)", "1"
    ),
    Operation("layer_norm", "gain outside the means", NORM_WITH_GAIN_INSIDE, NORM_WITH_GAIN_OUTSIDE),
    Operation("layer_norm", "gain missing in one mean", "dy_x_hat * gain", "dy_x_hat"),
    Operation("layer_norm", "mean dropped", "dx -= mean_g", "pass"),
    Operation(
        "layer_norm",
        "the variance taken for a constant",
        "dx -= x_hat * mean_g_x_hat",
        "pass",
    ),
    Operation("layer_norm", "deviation dropped", "dx *= r", "pass"),
    Operation(
        "layer_norm",
        "dgain from what is not normalised",
        "dy_x_hat.sum(axis=row_axes)",
        "dy.sum(axis=row_axes)",
    ),
    Operation("layer_norm", "dbias averaged", "dy.sum(axis=row_axes)", "dy.mean(axis=row_axes)"),
    Operation(
        "add_layer_norm",
        "residual forgotten",
        "return dsum, dsum, dgain, dbias",
        "return dsum, 0 * dsum, dgain, dbias",
    ),
    Operation(
        "add_layer_norm",
        "residual past the norm",
        "return dsum, dsum, dgain, dbias",
        "return dsum, dy, dgain, dbias",
    ),
    Operation("gelu_exact", "wrong constant", "math.sqrt(2 * math.pi)", "math.sqrt(math.pi)"),
    Operation("gelu_exact", "wrong exponent", "-0.5", "-1.0"),
    Operation("gelu_exact", "x before the density forgotten", "dx *= x", "pass"),
    Operation("gelu_exact", "product rule forgotten", "dx += cdf", "pass"),
    Operation("gelu_tanh", "constant rounded", "3 * CUBIC", "3 * 0.0447"),
    Operation("gelu_tanh", "inner derivative without its 3", "3 * CUBIC", "CUBIC"),
    Operation("gelu_tanh", "square of tanh forgotten", "1 - xp.square(t)", "1 - t"),
    Operation("gelu_tanh", "√(2/π) forgotten", "dx *= SCALE", "pass"),
    Operation("relu", "sign", "dy * saved.positive", "-dy * saved.positive"),
    Operation("relu", "the other side", "dy * saved.positive", "dy * ~saved.positive"),
    Operation(
        "linear_gelu", "activation forgotten", "(dh,) = GELU[saved.form][1](dy, saved.gelu)", "dh = dy"
    ),
    Operation("linear_gelu", "always the exact form", "GELU[saved.form]", 'GELU["exact"]'),
    Operation("dropout", "mask forgotten", "drop(dy, keep, rate)", "dy / (1 - rate)"),
    Operation("dropout", "not scaled", "y *= 1 / (1 - rate)", "pass", "drop"),
    Operation(
        "dropout",
        "another key",
        "keep_mask(array_module(dy), key, dy.shape, rate)",
        "keep_mask(array_module(dy), key._replace(stream=8), dy.shape, rate)",
    ),
    Operation(
        "embedding",
        "repeated ids count once",
        ADD_ROWS,
        "owner[ids] += rows",
        "add_rows",
    ),
    Operation(
        "embedding",
        "what was there is forgotten",
        ADD_ROWS,
        f"owner[...] = 0\n{ADD_ROWS}",
        "add_rows",
        check_sums,
    ),
    Operation("add_positions", "only the first row's", "dy.sum(axis=0)", "dy[0]"),
    Operation(
        "add_positions",
        "every position taken for the first",
        "add_rows(owner, rows, positions, dadded)",
        "add_rows(owner, rows, 0 * positions, dadded)",
    ),
    Operation("add_sinusoids", "scaled back", "(dy,)", "(dy * 2,)"),
    Operation("add_sinusoids", "gradient of the sinusoids", "(dy,)", "(dy.cumsum(axis=-1),)"),
    Operation(
        "cross_entropy", "label smoothing forgotten", "dlogits -= label_smoothing / dlogits.shape[-1]", "pass"
    ),
    Operation(
        "cross_entropy",
        "smoothed over the wrong classes only",
        "dlogits.shape[-1]",
        "dlogits.shape[-1] - 1",
    ),
    Operation("cross_entropy", "the target's 1 not smoothed", "1 - label_smoothing", "1"),
    Operation("cross_entropy", "ignored rows not zeroed", "counted * dtotal", "0 * counted + dtotal"),
    Operation("cross_entropy", "upstream gradient forgotten", "counted * dtotal", "counted * 1.0"),
    Operation("linear_cross_entropy", "upstream gradient forgotten", "dtotal", "1.0"),
    Operation("linear_cross_entropy", "bias gradient missing", "dlogits.sum(axis=0)", "0 * table[:, 0]"),
    Operation(
        "linear_cross_entropy",
        "table gradient transposed",
        "add_product(table_owner, dlogits.T, flatten_rows(h))",
        "(flatten_rows(h).T @ dlogits).reshape(table.shape)",
    ),
    Operation("attention", "scale dropped", "ds *= scale", "pass"),
    Operation(
        "attention",
        "softmax's sum dropped",
        "ds -= (dp * p).sum(axis=-1, keepdims=True)",
        "pass",
    ),
    Operation("attention", "probabilities dropped", "ds *= p", "pass"),
    Operation("attention", "dq and dk swapped", "return dq, dk, dv", "return dk, dq, dv"),
    Operation(
        "attention",
        "dk from the wrong side",
        "_sum_groups(ds.swapaxes(-1, -2), q_heads, out=dk)",
        "_sum_groups(ds.swapaxes(-1, -2), dy_heads, out=dk)",
    ),
    Operation("attention", "scores not transposed in dk", "ds.swapaxes(-1, -2)", "ds"),
    Operation("attention", "group averaged, not summed", "xp.sum", "xp.mean", "_sum_groups"),
    Operation(
        "attention",
        "only a group's first head",
        "xp.sum(a @ b, axis=2, out=out.transpose(0, 2, 1, 3))",
        "xp.sum((a @ b)[:, :, :1], axis=2, out=out.transpose(0, 2, 1, 3))",
        "_sum_groups",
    ),
    Operation(
        "attention",
        "heads grouped the other way",
        "x.reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)",
        "x.reshape(batch, length, heads // kv_heads, kv_heads, width).transpose(0, 3, 2, 1, 4)",
        "_heads_of_queries",
    ),
    Operation("attention", "dropout not scaled in dv", "drop(p, keep, dropout)", "drop(p, keep, 0.0)"),
    Operation(
        "attention",
        "dropout forgotten before softmax",
        "drop(dy_heads @ v_heads.swapaxes(-1, -2), keep, dropout)",
        "drop(dy_heads @ v_heads.swapaxes(-1, -2), None, dropout)",
    ),
    Operation(
        "attention",
        "dropout forgotten in dv",
        "drop(p, keep, dropout)",
        "drop(p, None, dropout)",
    ),
    Operation(
        "attention",
        "another key",
        "_keep_mask(p, dropout, key)",
        "_keep_mask(p, dropout, key and key._replace(stream=8))",
    ),
]


@named(OPERATIONS)
def test_a_mistake_in_an_operation_is_caught(row):
    error = GradientError if row.check is check_gradients else AssertionError
    wrong = row.backward(row.old, row.new)
    with pytest.raises(error):
        row.check(row.operation, wrong)


@pytest.mark.parametrize("name", [name for name in functional.__all__ if name.endswith("_backward")])
def test_every_backward_has_mistakes_and_none_as_it_stands(name):
    operation = name.removesuffix("_backward")
    mistakes = [row for row in OPERATIONS if row.operation == operation]
    assert len(mistakes) >= 2, (
        f"{operation} has {len(mistakes)} rows; give it two in OPERATIONS of {Path(__file__).name}"
    )
    for row in {(row.place, row.check): row for row in mistakes}.values():
        row.check(operation, row.backward(row.old, row.old))


# --- masks and owners


def check_all_masks(visible):
    """Compare ``visible`` with its definition on every small mask."""
    for kv_len, prefix_len, offset, queries in np.ndindex(5, 5, 6, 3):
        check_visible(visible, Mask(kv_len, prefix_len, offset - 2), 1, queries + 1, 3)
        by_row = Mask(np.array([kv_len, 3]), np.array([prefix_len, 0]), np.array([offset - 2, 2]))
        check_visible(visible, by_row, 2, queries + 1, 3)


def check_owner_rule(backward):
    """Check the decorator ``backward`` on an operation that leaves adding to it."""
    check_sums("layer_norm", backward(inspect.unwrap(functional.layer_norm_backward)))


# file, mistake, function, old, new
RULES = [
    ("mask", "a query does not see itself", "visible", "j <= i + offset", "j < i + offset"),
    ("mask", "one key of the padding is seen", "visible", "j < kv_len", "j <= kv_len"),
    ("mask", "one key beyond the prefix is seen", "visible", "j < prefix_len", "j <= prefix_len"),
    (
        "mask",
        "only what prefix and order both show",
        "visible",
        "(j < prefix_len) | (j <= i + offset)",
        "(j < prefix_len) & (j <= i + offset)",
    ),
    (
        "mask",
        "padding shown by the prefix",
        "visible",
        "(j < kv_len) & ((j < prefix_len) | (j <= i + offset))",
        "(j < kv_len) | ((j < prefix_len) | (j <= i + offset))",
    ),
    ("mask", "offset with the wrong sign", "visible", "i + offset", "i - offset"),
    ("mask", "first query sees one more", "_sees_all", "offset + 1", "offset + 2"),
    (
        "mask",
        "one row that sees all is enough",
        "_sees_all",
        "(np.minimum(kv_len, first_query_sees) >= key_length).all()",
        "(np.minimum(kv_len, first_query_sees) >= key_length).any()",
    ),
    ("mask", "padding forgotten", "_sees_all", "np.minimum(kv_len, first_query_sees)", "first_query_sees"),
    ("rules", "overwritten, not added", "_deliver", "owner += gradient", "owner[...] = gradient"),
    ("rules", "a sum that is nobody's", "_deliver", "owner += gradient", "owner = owner + gradient"),
    (
        "rules",
        "owners forgotten",
        "backward_uncast",
        "add_to or (None,) * len(gradients)",
        "(None,) * len(gradients)",
    ),
]
RULE_CHECKS = {"mask": ("visible", check_all_masks), "rules": ("backward", check_owner_rule)}


@pytest.mark.parametrize("row", RULES, ids=[f"{row[0]}-{row[1]}" for row in RULES])
def test_a_mistake_in_a_rule_is_caught(row):
    file, _, function, old, new = row
    module = sys.modules[f"minitransformer.functional.{file}"]
    name, check_rule = RULE_CHECKS[file]
    check_rule(vars(module)[name])
    wrong = run(mutated(inspect.getsource(module), old, new, function), module, {})[name]
    with pytest.raises(AssertionError):
        check_rule(wrong)
