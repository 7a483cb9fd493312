"""How long does a training step take? Ours against PyTorch eager on the CPU.

Both do all of it: forward, loss, backward, clipping by global norm, AdamW, from the same weights on the
same batches. Ours keeps freed memory for the next step, as the trainer does; PyTorch allocates as it comes.
Its AdamW is the fused one: not the default on a CPU, but several times faster on large tables, and a peer
should be taken at its best.

The same step by definitions alone runs beside them, to show what the kernels give.

The share of the ceiling counts three forwards' matrix products a step, attention's by the full square, and
compares with the rate of NumPy's own float32 products on as many threads.
"""

from dataclasses import asdict, dataclass

import numpy as np

from bench.attention import with_kernels, without_kernels
from bench.ceiling import MATRIX_PRODUCT, MATRIX_PRODUCT_FLOPS
from bench.contenders import median_seconds, race, started, summary
from minitransformer.data import TokenWindows
from minitransformer.models import GPT, GPTConfig
from minitransformer.system.memory import reuse_freed_memory
from minitransformer.training import TrainingArguments, train_step
from minitransformer.training.optimisers import make_optimiser

PEER = "pytorch-eager"
BATCHES = 8  # different ones, again and again
SEED = 1337
ARGUMENTS = TrainingArguments(
    learning_rate=1e-3, adam_beta1=0.9, adam_beta2=0.99, weight_decay=0.1, max_grad_norm=1.0
)


@dataclass(frozen=True)
class Case:
    """A GPT's shape and its batch: ``rows`` of ``config.context_length`` tokens."""

    name: str
    rows: int
    config: GPTConfig


def nanogpt(**shape):
    """Return a GPT's configuration with what nanoGPT chooses: the exact GELU, and no biases."""
    return GPTConfig(activation="gelu_exact", bias=False, **shape)


CASES = (
    Case(
        "nanoGPT's laptop configuration",
        12,
        nanogpt(vocabulary_size=65, context_length=64, layers=4, heads=4, width=128),
    ),
    Case(
        "nanoGPT's GPU configuration, smaller batch",
        8,
        nanogpt(vocabulary_size=65, context_length=256, layers=6, heads=6, width=384),
    ),
    Case(
        "two layers of GPT-2",
        2,
        nanogpt(vocabulary_size=50257, context_length=256, layers=2, heads=12, width=768),
    ),
)


def compare(case, cores, advance=lambda: None, peer_factory="bench.step:pytorch_step"):
    """Race a training step of ``case`` on ``cores``, a thread each; return the result."""
    settings = {"config": asdict(case.config), "rows": case.rows}
    with started(
        ("minitransformer", "bench.step:our_step_by_kernels", settings, cores),
        (PEER, peer_factory, {**settings, "threads": len(cores)}, cores),
        ("definition", "bench.step:our_step_by_definitions", settings, cores),
        ("the ceiling", MATRIX_PRODUCT, {}, cores),
    ) as (ours, peer, definition, ceiling):
        race(ours, peer, definition, ceiling, same=[peer, definition], advance=advance)
    result = {
        "benchmark": "step",
        "case": described(case, len(cores)),
        **summary(ours, peer),
        "other_seconds": {definition.name: median_seconds(definition)},
    }
    flops = 3 * case.rows * GPT(case.config).forward_flops(case.config.context_length)
    rate = MATRIX_PRODUCT_FLOPS / min(ceiling.seconds)
    share = flops / result["ours_seconds"] / rate
    return {**result, "ceiling_share": share, "ceiling_gflops": rate / 1e9}


def described(case, threads):
    """Return ``case`` by the letters of its sizes."""
    config = case.config
    return {
        "B": case.rows,
        "T": config.context_length,
        "H": config.heads,
        "K": config.width // config.heads,
        "causal": True,
        "dropout": config.dropout,
        "dtype": "float32",
        "threads": threads,
        "kernels": "fused",
        "layers": config.layers,
        "D": config.width,
        "F": config.feed_forward_width,
        "V": config.vocabulary_size,
    }


def our_step(config, rows):
    """Return our training step on batch ``number``, which returns the loss."""
    reuse_freed_memory()
    model, batches = model_and_batches(config, rows)
    optimiser = make_optimiser(model, ARGUMENTS)

    def step(number):
        batch = batches[number % BATCHES]
        return train_step(model, optimiser, [batch], ARGUMENTS.learning_rate, ARGUMENTS.max_grad_norm).loss

    return step


def our_step_by_kernels(config, rows):
    """Return our training step, which must not have run a definition in place of a kernel."""
    return with_kernels(our_step(config, rows))


def our_step_by_definitions(config, rows):
    """Return the same step without kernels."""
    return without_kernels(our_step(config, rows))


def pytorch_step(config, rows, threads):
    """Return PyTorch's training step on batch ``number``, which returns the loss."""
    import torch  # noqa: PLC0415  in the peer's process alone

    from bench import torch_gpt  # noqa: PLC0415

    torch.set_num_threads(threads)
    model, batches = model_and_batches(config, rows)
    tensors = torch_gpt.tensors_like(model, torch.float32)
    optimiser = torch_gpt.adamw(tensors, ARGUMENTS, fused=True)
    pairs = [[torch.from_numpy(batch[name]) for name in ("ids", "targets")] for batch in batches]

    def step(number):
        ids, targets = pairs[number % BATCHES]
        learning_rate, max_grad_norm = ARGUMENTS.learning_rate, ARGUMENTS.max_grad_norm
        return torch_gpt.train_step(
            tensors, model.config, optimiser, ids, targets, learning_rate, max_grad_norm
        )

    return step


def model_and_batches(config, rows):
    """Return the model and the batches that both sides start from: random tokens."""
    model = GPT(GPTConfig(**config)).build(seed=SEED)
    length = model.config.context_length
    tokens = np.random.default_rng(SEED).integers(0, model.config.vocabulary_size, 100 * length)
    windows = TokenWindows(tokens, length)
    places = [windows.training_places(number, rows, SEED) for number in range(BATCHES)]
    return model, [windows.collate(starts) for starts in places]
