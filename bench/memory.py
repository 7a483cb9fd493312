"""The memory of attention, forward and backward, as T grows.

Each measurement is a new process: after a tiny call, which compiles and starts threads, it reads how much
memory it holds, calls once, and returns by how much the peak exceeds that. What the call is given (q, k, v
and dy) is allocated before, so this is what the call allocates: results and scratch memory. On logarithmic
axes linear growth has slope 1, quadratic growth slope 2.
"""

import math
import sys

from bench.attention import ATTENTION, PEER, Case, describe_case
from bench.contenders import check_agreement, start_contenders
from bench.usage import CLEAR, read_memory, read_peak_memory, reset_peak_memory
from minitransformer.errors import InputError
from minitransformer.system.processors import list_processors

LENGTHS = 1024, 2048, 4096, 8192, 16384
QUICK_LENGTHS = 1024, 4096
LONGEST_BY_DEFINITION = 4096  # beyond, the probabilities alone take gigabytes
TINY = 64


def compare(length, cores):
    """Measure one ``length`` on ``cores``, one thread per core; return the result."""
    contenders = {"ours": ("minitransformer", "kernels"), "peer": (PEER, "pytorch")}
    if length <= LONGEST_BY_DEFINITION:
        contenders["definition"] = "definition", "definition"
    settings = {"length": length, "threads": len(cores)}
    case = describe_case(Case(T=length, backward=True), len(cores))
    used = measure_contenders(contenders, "bench.memory:make_measurement", settings, cores)
    return {"benchmark": "memory", "case": case, "peer": PEER, **used}


def compare_quickly():
    """Return the results of ``QUICK_LENGTHS`` on all cores."""
    return [compare(length, list_processors()) for length in QUICK_LENGTHS]


def measure_contenders(contenders, factory, settings, cores):
    """Return the bytes that a call of each of ``contenders`` needs, ``{"ROLE_bytes": number}``.

    ``contenders`` are ``{role: (name, who)}``; ``factory``, called with ``settings`` and ``who``, returns the
    step of ``measure_call``. Raise ContenderError unless all results agree.
    """
    used, samples = {}, []
    for role, (name, who) in contenders.items():  # one at a time, so that they do not compete for memory
        with start_contenders((name, factory, {**settings, "who": who}, cores)) as (process,):
            ((used[f"{role}_bytes"], *results),) = process.warm_up(steps=1)
            samples.append((process, [results]))
    for other in samples[1:]:
        check_agreement(*samples[0], *other)
    return used


def compute_slopes(results):
    """Return each contender's slope of log memory over log T, from its shortest to its longest T."""
    found = {}
    for role in ("ours", "peer", "definition"):
        points = [
            (result["case"]["T"], result[f"{role}_bytes"]) for result in results if f"{role}_bytes" in result
        ]
        if len(points) > 1:
            (short, low), (long, high) = points[0], points[-1]
            found[role] = math.log(high / low) / math.log(long / short)
    return found


def make_measurement(who, length, threads):
    """Return ``measure_call`` of an attention of ``length`` tokens."""
    cases = (Case(T=T, backward=True) for T in (TINY, length))
    return measure_call(*(ATTENTION[who](case, threads) for case in cases))


def measure_call(tiny, whole):
    """Return a step whose value is the bytes that ``whole`` needed, followed by what it returned.

    ``tiny`` is called before. Both are steps, which return lists.
    """
    if not CLEAR.exists():
        raise InputError(f"the memory of a single call can be measured on Linux only; this is {sys.platform}")
    tiny(0)

    def step(number):
        reset_peak_memory()
        before = read_memory()
        results = whole(number)
        return [read_peak_memory() - before, *results]

    return step
