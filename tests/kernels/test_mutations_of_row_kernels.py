"""Planted mistakes in the kernels of rows; see ``mutations``."""

import pytest
from common import fused_dropout as dropout
from common import fused_embedding as embedding
from common import fused_layer_norm as norms
from common import fused_optimisation as optimisation
from common import fused_relu as relu
from common.changed_kernels import compile_changed

from minitransformer.kernels.cpu import layer_norm as kernel


def check_norm_values(changed):
    """Check both forwards of a changed module, on rows with a tail, several of them per task."""
    backwards = kernel.layer_norm_backward, kernel.add_layer_norm_backward
    norms.check(
        *norms.draw(0, (40, 75)),
        pairs=tuple(zip((changed.layer_norm, changed.add_layer_norm), backwards, strict=True)),
    )


def check_norm_gradients(changed):
    """Check both backwards of a changed module."""
    forwards = kernel.layer_norm, kernel.add_layer_norm
    backwards = changed.layer_norm_backward, changed.add_layer_norm_backward
    norms.check(*norms.draw(0, (40, 75)), pairs=tuple(zip(forwards, backwards, strict=True)))


def check_update(changed):
    """Check the update of a changed module, in two tasks and with a tail of less than four entries."""
    optimisation.check_update(0, 2**14 + 3, changed.adamw)


def check_squared_norm(changed):
    """Check the norm of a changed module."""
    optimisation.check_norm(0, 2**14 + 2**10 + 77, changed.squared_norm)


def check_embedding(changed):
    """Check both operations of a changed module on a table of some tasks, and a tail."""
    pairs = (
        (changed.embedding, changed.embedding_backward),
        (changed.add_positions, changed.add_positions_backward),
    )
    embedding.check(*embedding.draw(0, 3, 20, 75, 30), pairs=pairs)


def check_dropout(changed):
    """Check the pair of a changed module."""
    dropout.check(*dropout.draw(0, (2, 3, 70)), (changed.dropout, changed.dropout_backward))


def check_relu(changed):
    """Check the pair of a changed module."""
    relu.check(*relu.draw(0, (3, 2**13)), (changed.relu, changed.relu_backward))


# file, mistake, function or None, old, new, check
MISTAKES = [
    ("layer_norm", "mean forgotten", "_normalise_row", "_sum(x, width) / width", "0.0", check_norm_values),
    ("layer_norm", "eps forgotten", "_normalise_row", "norm.eps", "1e-3", check_norm_values),
    (
        *("layer_norm", "the tail counts in the variance", "_deviation"),
        "where(words(count) > lane_numbers(), load_some(x, count) - splat(mean), splat(0.0))",
        *("load_some(x, count) - splat(mean)", check_norm_values),
    ),
    (
        *("layer_norm", "the tail dropped", "_sum"),
        *("range(end, width, LANES)", "range(end, width - LANES, LANES)", check_norm_values),
    ),
    ("layer_norm", "one of four sums dropped", "_sum_squares", "third + fourth", "third", check_norm_values),
    (
        "layer_norm",
        "bias forgotten",
        "_normalise_row",
        "fused(gain, x_hat, bias)",
        "gain * x_hat",
        check_norm_values,
    ),
    (
        *("layer_norm", "dgain without x̂", "_differentiate_row"),
        *(
            "fused(upstream, x_hat, load(dgain + 4 * d))",
            "load(dgain + 4 * d) + upstream",
            check_norm_gradients,
        ),
    ),
    (
        *("layer_norm", "dbias of the last row of a task", "_differentiate_row"),
        *("load(dbias + 4 * d) + upstream", "upstream", check_norm_gradients),
    ),
    (
        *("layer_norm", "gain outside the means", "_differentiate_row"),
        *("total_g + g", "total_g + upstream", check_norm_gradients),
    ),
    (
        *("layer_norm", "the variance taken for a constant", "_differentiate_row"),
        *("g - mean_g - x_hat * mean_g_x_hat", "g - mean_g", check_norm_gradients),
    ),
    (
        "layer_norm",
        "one task's sums only",
        "_differentiate",
        "sums.sum(axis=0)",
        "sums[0]",
        check_norm_gradients,
    ),
    (
        *("layer_norm", "residual forgotten in the backward", "_differentiate_row"),
        *("_find_row(norm, n, dx)", "norm.x.address + n * norm.x.row_bytes", check_norm_gradients),
    ),
    *[
        ("optimisation", mistake, part, old, new, check_update)
        for mistake, part, old, new in (
            ("decay without the rate", "adamw", "1 - learning_rate * weight_decay", "1 - weight_decay"),
            ("first correction forgotten", "adamw", "1 - beta1**steps", "1"),
            ("second correction forgotten", "adamw", "1 / math.sqrt(1 - beta2**steps)", "1"),
            ("betas swapped", "adamw", "beta1, beta2 = betas", "beta2, beta1 = betas"),
            ("scale forgotten", "adamw", "gradient_scale", "1.0"),
            (
                *("eps before the correction", "_update"),
                "fused(square_root(v), splat(update.second_correction), splat(update.eps))",
                "(square_root(v) + splat(update.eps)) * splat(update.second_correction)",
            ),
            ("not squared", "_update", "g * g * splat(1 - update.beta2)", "g * splat(1 - update.beta2)"),
            (
                "the tail dropped",
                "update_entries",
                "range(first, end, LANES)",
                "range(first, end - 4, LANES)",
            ),
            ("beyond the end", "update_entries", "end - n", "LANES"),
        )
    ],
    *[
        ("optimisation", mistake, part, old, new, check_squared_norm)
        for mistake, part, old, new in (
            (
                "the tail dropped",
                "_sum_span",
                "load_some(place, count - (place - address) // 4)",
                "splat(0.0)",
            ),
            ("one of four sums dropped", "_sum_span", "third + fourth", "third"),
            ("a part forgotten", "squared_norm", "parts.sum()", "parts[1:].sum()"),
        )
    ],
    *[
        ("embedding", mistake, part, old, new, check_embedding)
        for mistake, part, old, new in (
            (
                *("repeated ids count once", "scatter_rows"),
                *("load_some(target + 4 * d, count) + load_some(origin + 4 * d, count)",),
                "load_some(origin + 4 * d, count)",
            ),
            ("the first batch row only", "scatter_rows", "range(record.rows)", "range(record.id_count)"),
            (
                "tail dropped",
                "scatter_rows",
                "range(first, end, LANES)",
                "range(first, end // LANES * LANES, LANES)",
            ),
            (
                "columns of the next task",
                "scatter_rows",
                "first + TASK_COLUMNS",
                "first + TASK_COLUMNS + LANES",
            ),
        )
    ],
    *[
        ("dropout", mistake, part, old, new, check_dropout)
        for mistake, part, old, new in (
            ("not scaled", "_drop", "1 / (1 - rate)", "1.0"),
            ("the other half of the seed", "_drop", "key.seed >> 32 & WORD", "key.seed & WORD"),
            ("every matrix alike", "_drop_row", "longs(n // record.length)", "longs(0)"),
            ("rows numbered through", "_drop_row", "n % record.length", "n"),
            ("counters of neighbours", "_drop_row", "words(first // 4)", "words(first)"),
            ("one too many", "_drop_row", "word >= threshold", "word > words(0)"),
        )
    ],
    *[
        ("relu", mistake, part, old, new, check_relu)
        for mistake, part, old, new in (
            ("NaN lost", "rectify", "where(x <= zero, zero, x)", "where(x > zero, x, zero)"),
            (
                "all pass",
                "rectify_backward",
                "zero, one = splat(0.0), splat(1.0)",
                "zero, one = splat(-1e9), splat(1.0)",
            ),
            (
                "what is no number dropped",
                "rectify_backward",
                "load_some(record.dy + 4 * n, end - n) * positive",
                "where(positive > zero, load_some(record.dy + 4 * n, end - n), zero)",
            ),
        )
    ],
]


@pytest.mark.filterwarnings("ignore:compiled kernels cannot be cached")
@pytest.mark.parametrize("row", MISTAKES, ids=[f"{row[0]}-{row[1]}" for row in MISTAKES])
def test_a_planted_mistake_is_caught(row, monkeypatch):
    file, _, part, old, new, check = row
    changed = compile_changed(monkeypatch, file, old, new, part)
    with pytest.raises(AssertionError, match="result"):
        check(changed)
