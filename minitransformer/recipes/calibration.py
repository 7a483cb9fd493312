"""How long the parts of a run take on this machine, also when other processes are running.

These lengthen a measurement, and many times if NumPy's threads wait for each other. So measurements are made
twice; and where no processor is free, again in a process with one thread, by the processor time that it uses,
which hardly depends on other processes.
"""

import json
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from statistics import mean
from time import perf_counter, process_time, thread_time
from typing import NamedTuple

import numpy as np

from minitransformer.dispatch import inference, is_reference, reference
from minitransformer.functional import Key
from minitransformer.generation.sampling import generate
from minitransformer.models.table import ARCHITECTURES, find_architecture
from minitransformer.system.memory import reuse_freed_memory
from minitransformer.system.processors import THREAD_VARIABLES, count_processors
from minitransformer.training import TrainingArguments
from minitransformer.training.optimisers import make_optimiser
from minitransformer.training.step import train_step

SHARES = {"train": 0.6, "evaluate": 0.2, "generate": 0.2}  # of the time that a calibration takes
PROBE_SECONDS = 0.1


class Measurement(NamedTuple):
    """The seconds of a part of a run, ``least`` and ``most``, and the bytes of ``memory`` that it takes."""

    least: float
    most: float
    memory: float


def calibrate(model, arguments, counts, seconds, clock=perf_counter):
    """Return a ``Measurement`` of each part of a run of ``model``, by its name among those of ``SHARES``.

    ``counts`` say how many rows are trained on and evaluated at once, and how many tokens written. It takes
    about ``seconds``; what is too large for that is measured with a smaller count and extrapolated.
    """
    work = _make_parts(model, arguments)
    for part in work.values():
        part(1)  # compiles kernels
    return {name: _measure(part, counts[name], seconds * SHARES[name], clock) for name, part in work.items()}


def calibrate_alone(model, arguments, counts, seconds):
    """Return what ``calibrate`` does, in processor time of one thread, measured in a process of its own.

    Return None where that fails.
    """
    order = (
        find_architecture(model).name,
        vars(model.config),
        vars(arguments),
        counts,
        seconds,
        is_reference(),
    )
    done = subprocess.run(
        [sys.executable, "-m", "minitransformer.recipes.calibration"],
        input=json.dumps(order),
        env=os.environ | dict.fromkeys(THREAD_VARIABLES, "1"),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        return None
    return {name: Measurement(*values) for name, values in json.loads(done.stdout).items()}


def main():
    """Do what ``calibrate_alone`` asks for on standard input, and print it."""
    name, config, arguments, counts, seconds, by_definitions = json.load(sys.stdin)
    architecture = ARCHITECTURES[name]
    reuse_freed_memory()
    with reference() if by_definitions else nullcontext():
        model = architecture.model(architecture.config(**config)).build(seed=0)
        print(json.dumps(calibrate(model, TrainingArguments(**arguments), counts, seconds, process_time)))


def measure_free_share():
    """Return the least share of a processor that one of as many threads gets as there are processors."""
    count = count_processors()

    def share(_):
        numbers = np.ones(2**17)
        began, worked = perf_counter(), thread_time()
        while (lasted := perf_counter() - began) < PROBE_SECONDS:
            np.sin(numbers, out=numbers)  # without holding up other threads
        return (thread_time() - worked) / lasted

    with ThreadPoolExecutor(count) as pool:
        return min(1.0, *pool.map(share, range(count)))


def count_threads():
    """Return how many threads compute."""
    limits = [os.environ[name] for name in THREAD_VARIABLES if os.environ.get(name, "").isdecimal()]
    return min([count_processors(), *(max(1, int(limit)) for limit in limits)])


def _make_parts(model, arguments):
    """Return the parts of a run, functions of how much is to be done."""
    architecture, optimiser = find_architecture(model), make_optimiser(model, arguments)
    length = model.config.context_length

    def batch(rows):
        tokens = np.random.default_rng(0).integers(0, model.config.vocabulary_size, rows * length + 1)
        dataset = architecture.text_dataset(tokens, length)
        return dataset.collate(dataset.places()[:rows])

    def train(count):
        train_step(model, optimiser, [batch(count)], 0.0, arguments.max_grad_norm, Key(0))

    def evaluate(count):
        with inference():
            model.loss(batch(count))

    def write_tokens(count):
        if "generate" in architecture.commands:
            list(generate(model, [0], count))

    return {"train": train, "evaluate": evaluate, "generate": write_tokens}


def _measure(work, count, budget, clock):
    """Return the time and memory of ``work(count)``, extrapolated from smaller counts if that is slow."""
    one = _measure_at(work, 1, budget / 4, clock)
    some = min(count, max(2, int(budget / 3 / max(one.most, 1e-6))))
    if some <= 1:
        return one
    more = _measure_at(work, some, budget / 2, clock)
    if some == count:
        return more
    growth = [max(0.0, (large - small) / (some - 1)) for large, small in zip(more, one, strict=True)]
    return Measurement(*(small + each * (count - 1) for small, each in zip(one, growth, strict=True)))


def _measure_at(work, count, budget, clock):
    """Return the least and the mean time of ``work(count)``, in about ``budget`` seconds, and its memory."""
    tracemalloc.start()
    try:
        work(count)
        memory = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    times, began = [], perf_counter()
    while not times or perf_counter() - began < budget:
        start = clock()
        work(count)
        times.append(clock() - start)
    return Measurement(min(times), mean(times), memory)


if __name__ == "__main__":
    main()
