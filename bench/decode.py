"""The time of a token: our weights in float32, bfloat16 and int8, PyTorch eager and ``transformers``.

All read the same random weights of GPT-2's smallest shape from one folder, and have a key/value cache. A
step is some tokens after a prompt, of one row or of eight; every step continues the same prompt, so that the
contenders compute the same. The share of the bandwidth counts the weights that are multiplied by, and the
keys and values, each once, relative to the rate at which as many threads find the maximum of an array.

The rows of a batch have the same prompt: its keys and values are computed once and copied.
"""

import copy
import importlib.util
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bench.contenders import check_agreement, start_contenders
from bench.report import format_threads
from minitransformer.dispatch import inference
from minitransformer.functional import cross_entropy
from minitransformer.functional.packed_linear import PACKED_TYPES
from minitransformer.models import GPT, GPTConfig
from minitransformer.pretrained.model_folder import load_config, load_model, save_model
from minitransformer.system.memory import reuse_freed_memory
from minitransformer.system.processors import count_processors, list_processors

TURNS = 3
TOKENS = 6  # per step
SAMPLES = 16  # logits by which contenders are compared
JUDGED = 256  # tokens whose successors are predicted with each type of weights
READ = 2**27  # floats that are read to measure the bandwidth: 512 MiB
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
MAKE_STEP = "bench.decode:make_step"
OURS, TORCH, TRANSFORMERS, MEMORY = "minitransformer", "pytorch-eager", "transformers", "memory"
CONTENDERS = [
    *((OURS, dtype) for dtype in PACKED_TYPES),
    *((TORCH, dtype) for dtype in ("float32", "bfloat16")),
    (TRANSFORMERS, "float32"),
]


@dataclass(frozen=True)
class Case:
    """``rows`` of a batch after a prompt of ``prompt`` tokens; without rows, the prompt itself."""

    rows: int
    prompt: int


CASES = Case(1, 16), Case(1, 1000), Case(8, 16), Case(8, 1000), Case(0, 1000)
STEPS = 0, *range(len(CASES))  # the cases of a turn's steps; the first step warms up and is not counted


def compare(cores, config=None, advance=lambda: None, contenders=None, turns=None):
    """Race ``contenders``, all by default, on ``cores``, one thread per core; return a result per case."""
    config = config or GPTConfig()
    with tempfile.TemporaryDirectory() as folder:
        save_model(draw_model(config), folder)
        names = [
            name
            for name in contenders or CONTENDERS
            if name[0] != TRANSFORMERS or importlib.util.find_spec(TRANSFORMERS)
        ]
        started = [
            (" ".join(name), MAKE_STEP, {"folder": folder, "who": name[0], "dtype": name[-1]}, cores)
            for name in (*names, (MEMORY,))
        ]
        seconds = dict(zip((*names, MEMORY), _race(started, turns or TURNS, advance), strict=True))
        quality = judge(folder)
    read = [READ * 4 / 1e9 / time for times in seconds.pop(MEMORY) for time in times]
    return [
        {
            "benchmark": "decode",
            "case": {"B": case.rows or 1, "prompt": case.prompt, "threads": len(cores), **_shape(config)},
            "measured": "token" if case.rows else "prompt",
            "bandwidth_gigabytes_per_second": max(read),
            "contenders": [
                _summarise(name, times[index], case, config, max(read)) for name, times in seconds.items()
            ],
            "quality": quality,
        }
        for index, case in enumerate(CASES)
    ]


def compare_quickly():
    """Return the results of one turn on all cores: a quarter of the layers, and PyTorch's float32 alone."""
    chosen = [*((OURS, dtype) for dtype in PACKED_TYPES), (TORCH, "float32")]
    return compare(list_processors(), GPTConfig(layers=3), contenders=chosen, turns=1)


def _race(started, turns, advance):
    """Run all in turns; return for each contender its times, a list per case."""
    times = [[[] for _ in CASES] for _ in started]
    with start_contenders(*started) as contenders:
        values = [contender.warm_up(len(STEPS)) for contender in contenders]
        for contender, theirs in zip(contenders, values, strict=True):
            if _is_exact(contender.name):
                check_agreement(contenders[0], values[0], contender, theirs)
        for _ in range(turns):
            for contender, by_case in zip(contenders, times, strict=True):
                contender.seconds, contender.steps_per_turn = [], len(STEPS)
                contender.turn()
                for case_times, seconds in zip(by_case, contender.seconds, strict=True):
                    case_times.append(seconds)
            advance()
    return times


def _is_exact(name):
    """Return whether a contender computes what ours in float32 does."""
    return name.endswith("float32")


def _summarise(name, seconds, case, config, bandwidth):
    tokens = TOKENS if case.rows else 1
    median, least = float(np.median(seconds)) / tokens, min(seconds) / tokens
    read = _bytes_of_a_token(case, config, BYTES[name[1]]) / 1e9
    return {
        "name": name[0],
        "weights": name[1],
        "seconds": median,
        "minimum_seconds": least,
        "bandwidth_share": read / median / bandwidth if case.rows else None,
    }


def _bytes_of_a_token(case, config, size):
    """Return the bytes of weights, ``size`` each, and of keys and values that a token must read."""
    block = 4 * config.width**2 + 2 * config.width * config.feed_forward_width
    weights = config.layers * block + config.vocabulary_size * config.width
    return size * weights + 4 * 2 * config.layers * case.rows * case.prompt * config.width


def _shape(config):
    return {"layers": config.layers, "D": config.width, "V": config.vocabulary_size}


def draw_model(config):
    """Return a GPT with random weights, larger in the table, so that predictions are not all alike."""
    model, random = GPT(config).build(seed=None), np.random.default_rng(0)
    for path, parameter in model.parameters().items():
        deviation = 0.1 if path == "embedding.table" else 0.02
        value = parameter.value
        random.standard_normal(out=value, dtype=np.float32)
        value *= deviation
        if path.endswith("gain"):
            value += 1
    return model


def judge(folder):
    """Return by type of weights how much it changes what is predicted, compared with float32.

    ``agreement`` is the share of places at which the likeliest next token is the same; ``loss_difference`` is
    that of the mean loss in nats, on tokens drawn from the predictions of float32.
    """
    model, random = load_model(folder), np.random.default_rng(1)
    vocabulary = model.config.vocabulary_size
    ids = random.integers(0, vocabulary, (1, min(JUDGED, model.config.context_length)))
    with inference():
        logits = {dtype: model.for_decoding(dtype)(ids)[0][0] for dtype in PACKED_TYPES}
    best = logits["float32"]
    targets = (best + random.gumbel(size=best.shape)).argmax(axis=-1)
    losses = {
        dtype: float(cross_entropy(each, targets=targets)[0]) / len(targets) for dtype, each in logits.items()
    }
    return {
        dtype: {
            "agreement": float((logits[dtype].argmax(axis=-1) == best.argmax(axis=-1)).mean()),
            "loss": losses[dtype],
            "loss_difference": losses[dtype] - losses["float32"],
        }
        for dtype in PACKED_TYPES
    }


def make_step(folder, who, dtype):
    """Return the function that runs the step of a contender: the factory for ``bench.worker``."""
    reuse_freed_memory()
    if who == MEMORY:
        return make_reading_step()
    longest = max(case.prompt for case in CASES)
    vocabulary = load_config(folder).vocabulary_size
    ids = np.random.default_rng(2).integers(0, vocabulary, (1, longest + TOKENS))
    model = {OURS: Ours, TORCH: Torch, TRANSFORMERS: Transformers}[who](folder, dtype)
    lengths = {case.prompt for case in CASES}
    prompts = {length: model.run_prompt(ids[:, :length])[0] for length in lengths}
    caches = {case: copy.deepcopy(prompts[case.prompt]) for case in CASES if case.rows}
    for case, cache in caches.items():
        model.repeat(cache, case.rows)

    def step(number):
        case = CASES[STEPS[number % len(STEPS)]]
        if not case.rows:
            return model.run_prompt(ids[:, : case.prompt])[1][0, :SAMPLES].tolist()
        for place in range(case.prompt, case.prompt + TOKENS):
            token = ids[:, place : place + 1].repeat(case.rows, axis=0)
            logits = model.run_token(token, caches[case], place)
        return logits[-1, :SAMPLES].tolist()

    return step


def make_reading_step():
    """Return a function that reads ``READ`` floats per step, on every core that the process has."""
    count = count_processors()
    parts = np.array_split(np.ones(READ, np.float32), 8 * count)
    pool = ThreadPoolExecutor(count)
    return lambda number: max(pool.map(np.max, parts)).item()


class Ours:
    """Our model for decoding."""

    def __init__(self, folder, dtype):
        self.model = load_model(folder).for_decoding(dtype)

    def run_prompt(self, ids):
        """Return a cache of ``ids`` (1, P), and the logits (1, V) of what follows."""
        cache = self.model.cache(1)
        return cache, self._run(ids, cache)

    def repeat(self, cache, rows):
        """Make ``rows`` rows of the one in the cache."""
        cache.gather(np.zeros(rows, np.int64))

    def run_token(self, ids, cache, place):
        """Return the logits (B, V) after ``ids`` (B, 1), which follow ``place`` tokens."""
        cache.lengths = np.full(len(ids), place)
        for layer in cache.layers:
            layer.end = place
        return self._run(ids, cache)

    def _run(self, ids, cache):
        with inference():
            h, _ = self.model.hidden(ids, cache=cache)
            return self.model.head(h[:, -1])[0]


class Torch:
    """The same model in PyTorch eager; the methods are those of ``Ours``."""

    def __init__(self, folder, dtype):
        import torch  # noqa: PLC0415

        from bench import torch_gpt  # noqa: PLC0415

        self.torch, self.decode = torch, torch_gpt.decode
        self.dtype, model = getattr(torch, dtype), load_model(folder)
        self.config = model.config
        self.tensors = torch_gpt.tensors_to_decode(model, self.dtype)

    def run_prompt(self, ids):
        """Return a cache and logits."""
        config = self.config
        shape = 1, config.heads, config.context_length, config.width // config.heads
        cache = [[self.torch.zeros(shape, dtype=self.dtype) for _ in range(2)] for _ in range(config.layers)]
        return cache, self.run_token(ids, cache, 0)

    def repeat(self, cache, rows):
        """Make ``rows`` rows of the one in the cache."""
        for layer in cache:
            layer[:] = [part.repeat(rows, 1, 1, 1) for part in layer]

    def run_token(self, ids, cache, place):
        """Return logits."""
        with self.torch.inference_mode():
            return self.decode(self.tensors, self.config, self.torch.from_numpy(ids), cache, place)


class Transformers:
    """GPT-2 of ``transformers``; the methods are those of ``Ours``."""

    def __init__(self, folder, dtype):
        import torch  # noqa: PLC0415
        import transformers  # noqa: PLC0415

        self.torch = torch
        self.model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def run_prompt(self, ids):
        """Return a cache and logits."""
        with self.torch.inference_mode():
            result = self.model(self.torch.from_numpy(ids), use_cache=True, logits_to_keep=1)
        return result.past_key_values, result.logits[:, -1]

    def repeat(self, cache, rows):
        """Make ``rows`` rows of the one in the cache."""
        cache.batch_repeat_interleave(rows)

    def run_token(self, ids, cache, place):
        """Return logits."""
        if cache.get_seq_length() > place:
            cache.crop(place - cache.get_seq_length())
        with self.torch.inference_mode():
            result = self.model(
                self.torch.from_numpy(ids), past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        return result.logits[:, -1]


def print_results(results):
    """Print a table: a block per case, with a row per contender; and what rounded weights change."""
    print("\ndecode: milliseconds per token, median (minimum), and share of the rate of reading memory\n")
    for result in results:
        case = result["case"]
        what = "a token of each row" if result["measured"] == "token" else "the prompt itself"
        sizes = f"{case['layers']} layers, B={case['B']}, prompt {case['prompt']}"
        print(f"{sizes}, {format_threads(case['threads'])}: {what}")
        for one in result["contenders"]:
            share = "" if one["bandwidth_share"] is None else f"{one['bandwidth_share']:6.0%}"
            times = f"{1e3 * one['seconds']:8.1f} ({1e3 * one['minimum_seconds']:.1f})"
            print(f"  {one['name']:16}{one['weights']:9}{times:>20}{share}")
    print(f"\nreading: {results[0]['bandwidth_gigabytes_per_second']:.1f} GB/s")
    for dtype, quality in results[0]["quality"].items():
        print(
            f"{dtype:9}{quality['agreement']:6.1%} of the likeliest tokens are those of float32; "
            f"loss {quality['loss']:.4f} ({quality['loss_difference']:+.4f})"
        )
