"""The time of a training step: ours against PyTorch eager on the CPU.

Both run the whole step: forward, loss, backward, clipping by global norm, AdamW, from the same weights on the
same batches. Ours reuses freed memory in the next step, as the trainer does; PyTorch allocates by default.
PyTorch's AdamW is the fused one: not the default on a CPU, but several times faster on large tables.

The same step by definitions shows what the kernels gain. Page faults count what a step allocates anew.

The share of the ceiling counts the matrix products of three forward passes per step, attention's for all T²
entries, relative to the rate of NumPy's float32 products on as many threads.
"""

from dataclasses import asdict, dataclass

import numpy as np

from bench.attention import require_kernels, switch_kernels_off
from bench.ceiling import MATRIX_PRODUCT, MATRIX_PRODUCT_FLOPS
from bench.contenders import (
    QUICK_TURNS,
    compute_median,
    race,
    start_contenders,
    summarise,
    summarise_memory,
)
from minitransformer.data import TokenWindows
from minitransformer.models import GPT, GPTConfig
from minitransformer.system.memory import reuse_freed_memory
from minitransformer.system.processors import list_processors
from minitransformer.training import TrainingArguments, train_step
from minitransformer.training.optimisers import make_optimiser

PEER = "pytorch-eager"
BATCHES = 8  # different ones, repeated
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


def make_nanogpt_config(**shape):
    """Return a GPT's configuration with nanoGPT's choices: the exact GELU, and no biases."""
    return GPTConfig(activation="gelu_exact", bias=False, **shape)


CASES = (
    Case(
        "nanoGPT's laptop configuration",
        12,
        make_nanogpt_config(vocabulary_size=65, context_length=64, layers=4, heads=4, width=128),
    ),
    Case(
        "nanoGPT's GPU configuration, smaller batch",
        8,
        make_nanogpt_config(vocabulary_size=65, context_length=256, layers=6, heads=6, width=384),
    ),
    Case(
        "two layers of GPT-2",
        2,
        make_nanogpt_config(vocabulary_size=50257, context_length=256, layers=2, heads=12, width=768),
    ),
)


def compare(case, cores, advance=lambda: None, turns=None):
    """Race a training step of ``case`` on ``cores``, one thread per core; return the result."""
    with start_contenders(
        *describe_pair(case, cores),
        ("definition", "bench.step:make_definition_step", describe_settings(case), cores),
        ("the ceiling", MATRIX_PRODUCT, {}, cores),
    ) as (ours, peer, definition, ceiling):
        race(ours, peer, definition, ceiling, same=[peer, definition], advance=advance, turns=turns)
    result = {
        "benchmark": "step",
        "case": describe_case(case, len(cores)),
        **summarise(ours, peer),
        **summarise_memory(ours, peer),
        "other_seconds": {definition.name: compute_median(definition)},
    }
    flops = 3 * case.rows * GPT(case.config).forward_flops(case.config.context_length)
    rate = MATRIX_PRODUCT_FLOPS / min(ceiling.seconds)
    share = flops / result["ours_seconds"] / rate
    return {**result, "ceiling_share": share, "ceiling_gflops": rate / 1e9}


def compare_quickly():
    """Return the results of all cases on all cores, after a few turns."""
    return [compare(case, list_processors(), turns=QUICK_TURNS) for case in CASES]


def describe_pair(case, cores, peer_factory="bench.step:make_pytorch_step"):
    """Return the arguments of the two contenders, ours and PyTorch."""
    settings = describe_settings(case)
    return (
        ("minitransformer", "bench.step:make_kernel_step", settings, cores),
        (PEER, peer_factory, {**settings, "threads": len(cores)}, cores),
    )


def describe_settings(case):
    """Return ``case`` as the arguments of the factories below."""
    return {"config": asdict(case.config), "rows": case.rows}


def describe_case(case, threads):
    """Return ``case`` as a dictionary, sizes by their letters."""
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


def _make_our_step(config, rows):
    """Return our training step on batch ``number``, which returns the loss."""
    reuse_freed_memory()
    model, batches = _make_model_and_batches(config, rows)
    optimiser = make_optimiser(model, ARGUMENTS)

    def step(number):
        batch = batches[number % BATCHES]
        return train_step(model, optimiser, [batch], ARGUMENTS.learning_rate, ARGUMENTS.max_grad_norm).loss

    return step


def make_kernel_step(config, rows):
    """Return our training step; it raises RuntimeError if a definition ran instead of a kernel."""
    return require_kernels(_make_our_step(config, rows))


def make_definition_step(config, rows):
    """Return the same step with kernels off."""
    return switch_kernels_off(_make_our_step(config, rows))


def make_pytorch_step(config, rows, threads):
    """Return PyTorch's training step on batch ``number``, which returns the loss."""
    import torch  # noqa: PLC0415  only in the peer's process

    from bench import torch_gpt  # noqa: PLC0415

    torch.set_num_threads(threads)
    model, batches = _make_model_and_batches(config, rows)
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


def _make_model_and_batches(config, rows):
    """Return the initial model and the batches, of random tokens, for both contenders."""
    model = GPT(GPTConfig(**config)).build(seed=SEED)
    length = model.config.context_length
    tokens = np.random.default_rng(SEED).integers(0, model.config.vocabulary_size, 100 * length)
    windows = TokenWindows(tokens, length)
    places = [windows.training_places(number, rows, SEED) for number in range(BATCHES)]
    return model, [windows.collate(starts) for starts in places]
