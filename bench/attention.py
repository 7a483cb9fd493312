"""The speed of attention: our kernels, PyTorch's SDPA on the CPU, JAX if it is installed, and our definition.

q, k and v are the parts of a packed projection, (B, T, H, K) views of one (B, T, 3, H, K) array, except for
JAX, which copies them. All contenders reuse freed memory, so that attention is compared and not page faults.

Work is counted as the multiplications and additions for visible entries: 4·K per entry in forward, 10·K more
in backward. The share of the ceiling is the rate of that work relative to NumPy's float32 matrix products on
as many threads. The random numbers of dropout are not counted.
"""

import importlib.util
import math
from dataclasses import asdict, dataclass

import numpy as np

from bench.ceiling import MATRIX_PRODUCT, MATRIX_PRODUCT_FLOPS, MEMORY_STREAM, MEMORY_STREAM_BYTES
from bench.contenders import QUICK_TURNS, TURNS, compute_median, race, start_contenders, summarise
from minitransformer import dispatch
from minitransformer.functional import causal_mask, full_mask
from minitransformer.functional.philox import Key
from minitransformer.system.memory import reuse_freed_memory
from minitransformer.system.processors import list_processors

PEER = "pytorch-sdpa"
TOKENS = 2048  # per batch; a longer sequence is a batch of one
HEADS = 8
SAMPLES = 64  # numbers per result by which contenders are compared


@dataclass(frozen=True)
class Case:
    """The shape of a call: B rows of T tokens, ``HEADS`` heads of width K."""

    T: int
    B: int = 1
    K: int = 64
    causal: bool = False
    backward: bool = False
    dropout: float = 0.0

    def flops(self):
        """Return the number of multiplications and additions that are needed, each counted as one."""
        entries = self.T * (self.T + 1) // 2 if self.causal else self.T**2
        return self.B * HEADS * entries * self.K * (14 if self.backward else 4)

    def least_bytes(self):
        """Return the bytes moved if every argument and result is moved once.

        Forward: q, k, v and y. Backward: those, dy, dq, dk and dv.
        """
        return 4 * self.B * self.T * HEADS * self.K * (12 if self.backward else 4)


HEADLINE = 512, 1024, 2048, 4096  # the T over which geometric means are taken
SHAPES = (
    *({"T": T, "B": max(1, TOKENS // T)} for T in (128, *HEADLINE)),
    *({"T": 1024, "B": TOKENS // 1024, "K": K} for K in (32, 80, 128)),
    {"T": 1024, "B": TOKENS // 1024, "dropout": 0.1},
)
CASES = tuple(
    Case(**shape, causal=causal, backward=backward)
    for backward in (False, True)
    for causal in (False, True)
    for shape in SHAPES
)
QUICK_CASES = tuple(
    Case(T=T, B=TOKENS // T, causal=causal, backward=backward)
    for causal, backward in ((False, False), (True, True))
    for T in (128, 1024)
)
MAKE_STEP = "bench.attention:make_step"


def compare(
    case, cores, advance=lambda: None, turns=None, peer_factory=MAKE_STEP, definition_factory=MAKE_STEP
):
    """Race ``case`` on ``cores``, one thread per core; return the result."""
    settings = {**asdict(case), "threads": len(cores)}
    contenders = [
        ("minitransformer", MAKE_STEP, {**settings, "who": "kernels"}, cores),
        (PEER, peer_factory, {**settings, "who": "pytorch"}, cores),
        ("definition", definition_factory, {**settings, "who": "definition"}, cores),
    ]
    if importlib.util.find_spec("jax") and not case.dropout:  # JAX's attention has no dropout
        contenders.append(("jax", MAKE_STEP, {**settings, "who": "jax"}, cores))
    with start_contenders(*contenders, ("the ceiling", MATRIX_PRODUCT, {}, cores)) as processes:
        ours, peer, *others, ceiling = processes
        # PyTorch drops other entries than the kernel; the definition drops the same
        same = others if case.dropout else [peer, *others]
        race(*processes, same=same, advance=advance, turns=turns)
    rate = MATRIX_PRODUCT_FLOPS / min(ceiling.seconds)
    return {
        "benchmark": "attention",
        "case": describe_case(case, len(cores)),
        **summarise(ours, peer),
        "other_seconds": {other.name: compute_median(other) for other in others},
        "gflop": case.flops() / 1e9,
        "flop_per_byte": case.flops() / case.least_bytes(),
        "ceiling_share": case.flops() / compute_median(ours) / rate,
        "ceiling_gflops": rate / 1e9,
    }


def compare_quickly():
    """Return the results of ``QUICK_CASES`` on all cores, after a few turns."""
    return [compare(case, list_processors(), turns=QUICK_TURNS) for case in QUICK_CASES]


def measure_bandwidth(cores):
    """Return the memory bandwidth of ``cores`` in gigabytes per second."""
    with start_contenders(("memory", MEMORY_STREAM, {"threads": len(cores)}, cores)) as (memory,):
        memory.warm_up()
        for _ in range(TURNS):
            memory.turn()
    return MEMORY_STREAM_BYTES / min(memory.seconds) / 1e9


def describe_case(case, threads):
    """Return ``case`` as a dictionary, sizes by their letters."""
    return {
        "pass": "forward + backward" if case.backward else "forward",
        "B": case.B,
        "T": case.T,
        "H": HEADS,
        "K": case.K,
        "causal": case.causal,
        "dropout": case.dropout,
        "dtype": "float32",
        "threads": threads,
        "kernels": "fused",
    }


def compute_means(results):
    """Return the geometric mean and minimum of the ratios over ``HEADLINE``, by threads, pass and mask."""
    groups = {}
    for result in results:
        case = result["case"]
        if case["K"] == 64 and not case["dropout"] and case["T"] in HEADLINE:
            group = case["threads"], case["pass"], "causal" if case["causal"] else "full"
            groups.setdefault(group, []).append(result["ratio"])
    return [
        {
            **dict(zip(("threads", "pass", "mask"), group, strict=True)),
            "mean_ratio": math.exp(sum(map(math.log, ratios)) / len(ratios)),
            "smallest_ratio": min(ratios),
        }
        for group, ratios in groups.items()
    ]


def make_step(who, threads, **case):
    """Return the step of contender ``who``, in a process that reuses freed memory."""
    reuse_freed_memory()
    return ATTENTION[who](Case(**case), threads)


def make_kernel_step(case, threads):
    """Return a step by our kernels; the environment sets the number of threads."""
    return require_kernels(_make_dispatch_step(case))


def make_definition_step(case, threads):
    """Return a step by our definition."""
    return switch_kernels_off(_make_dispatch_step(case))


def require_kernels(step):
    """Return ``step``, which then raises RuntimeError if an operation with a kernel never ran it."""

    def checked(number):
        value = step(number)
        refused = dispatch.misses.keys() - dispatch.hits.keys()
        if refused:
            raise RuntimeError(f"kernels refused {', '.join(sorted(refused))}: see minitransformer info")
        return value

    return checked


def switch_kernels_off(step):
    """Return ``step``, run with kernels off."""

    def by_definitions(number):
        with dispatch.reference():
            return step(number)

    return by_definitions


def _make_dispatch_step(case):
    packed, dy = make_inputs(case)
    heads = np.moveaxis(packed, 2, 0)
    mask = causal_mask(case.T) if case.causal else full_mask(case.T)
    key = Key(0) if case.dropout else None

    def step(number):
        y, saved = dispatch.attention(*heads, mask=mask, dropout=case.dropout, key=key)
        return sample(y, *(dispatch.attention_backward(dy, saved) if case.backward else ()))

    return step


def make_pytorch_step(case, threads):
    """Return a step by PyTorch's attention."""
    import torch  # noqa: PLC0415  only in the peer's process
    from torch.nn.functional import scaled_dot_product_attention  # noqa: PLC0415

    torch.set_num_threads(threads)
    packed, dy = make_inputs(case)
    heads = torch.from_numpy(packed).permute(2, 0, 3, 1, 4).detach()
    q, k, v = (part.requires_grad_(case.backward) for part in heads.unbind())
    dy = torch.from_numpy(dy).transpose(1, 2)
    if case.dropout:
        shares = scaled_dot_product_attention(q, k, torch.ones_like(v), dropout_p=case.dropout).detach()
        if not (shares.std() > 1e-3 and abs(shares.mean() - 1) < 0.01):
            raise RuntimeError(f"PyTorch's weights sum to {shares.mean():.3f}, so it applied no dropout")

    def step(number):
        y = scaled_dot_product_attention(q, k, v, dropout_p=case.dropout, is_causal=case.causal)
        gradients = torch.autograd.grad(y, (q, k, v), dy) if case.backward else ()
        return sample(*(array.detach().transpose(1, 2).numpy() for array in (y, *gradients)))

    return step


def make_jax_step(case, threads):
    """Return a step by JAX's attention, compiled."""
    import jax  # noqa: PLC0415  only in its process

    packed, dy = make_inputs(case)
    heads, dy = [jax.numpy.asarray(part) for part in np.moveaxis(packed, 2, 0)], jax.numpy.asarray(dy)

    def attend(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=case.causal)

    @jax.jit
    def forward_and_backward(q, k, v, dy):
        y, pullback = jax.vjp(attend, q, k, v)
        return y, *pullback(dy)

    forward = jax.jit(attend)

    def step(number):
        results = forward_and_backward(*heads, dy) if case.backward else (forward(*heads),)
        return sample(*map(np.asarray, results))

    return step


ATTENTION = {
    "kernels": make_kernel_step,
    "definition": make_definition_step,
    "pytorch": make_pytorch_step,
    "jax": make_jax_step,
}


def make_inputs(case):
    """Return q, k and v as one (B, T, 3, H, K) array, and dy."""
    random = np.random.default_rng(0)
    packed = random.standard_normal((case.B, case.T, 3, HEADS, case.K), np.float32)
    return packed, random.standard_normal((case.B, case.T, HEADS, case.K), np.float32)


def sample(*results):
    """Return ``SAMPLES`` numbers of each result, at random indices."""
    indices = np.random.default_rng(1).integers(0, results[0].shape, (SAMPLES, 4))
    return [result[tuple(indices.T)].tolist() for result in results]
