"""A language model's head and loss on its own: ``linear_cross_entropy`` against PyTorch's two operations.

Forward and backward of the mean loss; both add the gradients to arrays that are given, as in training. Ours
goes through dispatch, so it is the kernel where there is one; PyTorch's are ``linear`` and ``cross_entropy``.
Both reuse freed memory, so that page faults are not compared.

Work is counted as the multiplications and additions of the three products: logits, dh and dtable. The memory
is that of one call in a new process, above what was held before (``bench.memory``).
"""

from dataclasses import dataclass

import numpy as np

from bench.attention import require_kernels, switch_kernels_off
from bench.ceiling import MATRIX_PRODUCT, MATRIX_PRODUCT_FLOPS
from bench.contenders import QUICK_TURNS, compute_median, race, start_contenders, summarise
from bench.memory import measure_call, measure_contenders
from bench.usage import CLEAR
from minitransformer import dispatch
from minitransformer.system.memory import reuse_freed_memory
from minitransformer.system.processors import list_processors

PEER = "pytorch-eager"
SAMPLES = 64  # numbers per result by which contenders are compared


@dataclass(frozen=True)
class Case:
    """The shape of a call: N rows of width D, a table of V rows."""

    N: int
    V: int
    D: int

    def flops(self):
        """Return the number of multiplications and additions of the products, each counted as one."""
        return 6 * self.N * self.V * self.D


GPT2 = Case(N=512, V=50257, D=768)
TINY = Case(N=64, V=1024, D=64)  # large enough for a kernel
MAKE_STEP, MAKE_MEASUREMENT = "bench.cross_entropy:make_step", "bench.cross_entropy:make_measurement"


def compare(case, cores, advance=lambda: None, turns=None):
    """Race ``case`` on ``cores``, one thread per core, and measure a call's memory; return the result."""
    settings = {"N": case.N, "V": case.V, "D": case.D, "threads": len(cores)}
    with start_contenders(
        ("minitransformer", MAKE_STEP, {**settings, "who": "kernels"}, cores),
        (PEER, MAKE_STEP, {**settings, "who": "pytorch"}, cores),
        ("definition", MAKE_STEP, {**settings, "who": "definition"}, cores),
        ("the ceiling", MATRIX_PRODUCT, {}, cores),
    ) as (ours, peer, definition, ceiling):
        race(ours, peer, definition, ceiling, same=[peer, definition], advance=advance, turns=turns)
    rate = MATRIX_PRODUCT_FLOPS / min(ceiling.seconds)
    return {
        "benchmark": "cross-entropy",
        "case": {
            **{
                "operation": "linear_cross_entropy, forward + backward",
                "N": case.N,
                "D": case.D,
                "V": case.V,
            },
            **{"dtype": "float32", "threads": len(cores), "kernels": "fused"},
        },
        **summarise(ours, peer),
        "other_seconds": {definition.name: compute_median(definition)},
        "ceiling_share": case.flops() / compute_median(ours) / rate,
        "ceiling_gflops": rate / 1e9,
        **measure_memory(settings, cores),
    }


def compare_quickly():
    """Return the result on all cores, after a few turns."""
    return [compare(GPT2, list_processors(), turns=QUICK_TURNS)]


def measure_memory(settings, cores):
    """Return the bytes that a call needs, ours and PyTorch's; nothing where the system does not tell."""
    if not CLEAR.exists():
        return {}
    contenders = {"ours": ("minitransformer", "kernels"), "peer": (PEER, "pytorch")}
    return measure_contenders(contenders, MAKE_MEASUREMENT, settings, cores)


def make_measurement(who, N, V, D, threads):  # noqa: N803  shapes by letter
    """Return ``measure_call`` of contender ``who``."""
    return measure_call(*(CONTENDERS[who](case, threads) for case in (TINY, Case(N, V, D))))


def make_step(who, N, V, D, threads):  # noqa: N803  shapes by letter
    """Return the step of contender ``who``, in a process that reuses freed memory."""
    reuse_freed_memory()
    return CONTENDERS[who](Case(N, V, D), threads)


def make_kernel_step(case, threads):
    """Return a step by our kernel, if there is one; the environment sets the number of threads."""
    return require_kernels(_make_dispatch_step(case))


def make_definition_step(case, threads):
    """Return a step by our definition."""
    return switch_kernels_off(_make_dispatch_step(case))


def _make_dispatch_step(case):
    h, table, targets = make_inputs(case)
    dh, dtable = make_gradients(h, table)
    weight = np.float32(1 / case.N)

    def step(number):
        total, call = dispatch.linear_cross_entropy(h, table, None, targets=targets)
        dispatch.linear_cross_entropy_backward(weight, call, add_to=(dh, dtable, None))
        return sample(float(total) / case.N, dh, dtable, targets)

    return step


def make_pytorch_step(case, threads):
    """Return a step by PyTorch's operations."""
    import torch  # noqa: PLC0415  only in the peer's process
    from torch.nn.functional import cross_entropy, linear  # noqa: PLC0415

    torch.set_num_threads(threads)
    *inputs, targets = make_inputs(case)
    gradients = make_gradients(*inputs)
    h, table = (torch.from_numpy(array).requires_grad_() for array in inputs)
    h.grad, table.grad = map(torch.from_numpy, gradients)
    their_targets = torch.from_numpy(targets)

    def step(number):
        loss = cross_entropy(linear(h, table), their_targets)
        loss.backward()
        return sample(loss.item(), *gradients, targets)

    return step


CONTENDERS = {
    "kernels": make_kernel_step,
    "definition": make_definition_step,
    "pytorch": make_pytorch_step,
}


def make_inputs(case):
    """Return h (N, D), the table (V, D) and the targets (N,)."""
    random = np.random.default_rng(0)
    h = random.standard_normal((case.N, case.D), np.float32)
    table = random.standard_normal((case.V, case.D), np.float32) * np.float32(case.D**-0.5)
    return h, table, random.integers(0, case.V, case.N)


def make_gradients(*arrays):
    """Return zeros like each of ``arrays``, in memory that is in use: that of ``zeros_like`` is not yet."""
    return [np.full_like(array, 0) for array in arrays]


def sample(loss, dh, dtable, targets):
    """Return ``SAMPLES`` times the loss, and numbers of dh, of dtable in rows of targets, and in any rows."""
    random = np.random.default_rng(1)
    rows, columns = random.integers(0, [[len(targets)], [dh.shape[1]]], (2, SAMPLES))
    others = random.integers(0, len(dtable), SAMPLES)
    return [
        np.full(SAMPLES, loss).tolist(),
        dh[rows, columns].tolist(),
        dtable[targets[rows], columns].tolist(),
        dtable[others, columns].tolist(),
    ]
