"""Cross-entropy of class scores, with label smoothing and ignored targets."""

from typing import Any, NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.rules import backward, check_ids, forward
from minitransformer.functional.softmax import log_softmax

IGNORED = -100


class CrossEntropySaved(NamedTuple):
    """What ``cross_entropy_backward`` needs."""

    log_p: Any  # (…, V)
    targets: Any  # (N,), 0 where ignored
    counted: Any  # (N,), booleans
    label_smoothing: float


@forward
def cross_entropy(logits, *, targets, ignore_index=IGNORED, label_smoothing=0.0):
    """Return the cross-entropy, summed over all targets that count, in nats: a 0-d array.

    ``logits`` (…, V), ``targets`` integers (…) in [0, V), or ``ignore_index`` where there is nothing to
    predict → (). The sum, not the mean: the losses of micro-batches are added, then divided once.

    With ε = ``label_smoothing`` the target distribution is q = (1 − ε) · one-hot + ε/V (PyTorch's choice;
    others spread ε over V − 1 or V − 2 classes). With p = softmax(logits), a row's loss is

        −Σ_v q_v log p_v = (ε − 1) · log p_target − ε · mean(log p)

    and since Σ q = 1,

        dlogits = dtotal · (p − q),   0 in ignored rows
    """
    xp = array_module(logits)
    targets, counted = check_targets(logits.shape, targets, ignore_index, label_smoothing)

    log_p, _ = log_softmax(logits.reshape(targets.size, logits.shape[-1]))  # (N, V)
    rows = xp.arange(targets.size)
    losses = (label_smoothing - 1) * log_p[rows, targets]  # (ε − 1) · log p_target
    if label_smoothing:
        losses -= label_smoothing * log_p.mean(axis=-1)  # −Σ_v q_v log p_v
    total = xp.where(counted, losses, 0).sum()
    return total, CrossEntropySaved(log_p.reshape(logits.shape), targets, counted, label_smoothing)


@backward
def cross_entropy_backward(dtotal, saved):
    """Return ``(dlogits,)``."""
    log_p, targets, counted, label_smoothing = saved
    xp = array_module(log_p)
    dlogits = xp.exp(log_p.reshape(targets.size, log_p.shape[-1]))  # p
    if label_smoothing:
        dlogits -= label_smoothing / dlogits.shape[-1]  # p − ε/V
    dlogits[xp.arange(targets.size), targets] -= 1 - label_smoothing  # p − q
    dlogits *= (counted * dtotal).astype(dlogits.dtype)[:, None]  # dtotal · (p − q), or 0
    return (dlogits.reshape(log_p.shape),)


def check_targets(shape, targets, ignore_index, label_smoothing):
    """Return the targets (N,) of logits of a ``shape`` (…, V), 0 where ignored, and which count (N,).

    Raises ValueError for what ``cross_entropy`` does not take.
    """
    xp = array_module(targets)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}; expected 0 to 1")
    if targets.shape != shape[:-1]:
        raise ValueError(
            f"cross_entropy: logits have shape {shape} and targets {targets.shape}; "
            f"expected targets of shape {shape[:-1]}"
        )
    check_ids("cross_entropy", xp.where(targets == ignore_index, 0, targets), shape[-1], "target")
    targets = targets.reshape(-1)
    counted = targets != ignore_index
    return xp.where(counted, targets, 0), counted
