"""The memory of attention, forward and backward, as T grows.

Each measurement is a new process: after a tiny call, which compiles and starts threads, it reads how much
memory it holds, calls once, and returns by how much the peak exceeds that. q, k, v and dy are allocated
before, so this is what the call allocates: results and scratch memory. On logarithmic axes linear growth has
slope 1, quadratic growth slope 2.
"""

import math
import sys
from pathlib import Path

from bench.attention import ATTENTION, PEER, Case, describe_case
from bench.contenders import check_agreement, start_contenders
from minitransformer.errors import InputError

LENGTHS = 1024, 2048, 4096, 8192, 16384
LONGEST_BY_DEFINITION = 4096  # beyond, the probabilities alone take gigabytes
TINY = 64
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def compare(length, cores):
    """Measure one ``length`` on ``cores``, one thread per core; return the result."""
    contenders = {"ours": ("minitransformer", "kernels"), "peer": (PEER, "pytorch")}
    if length <= LONGEST_BY_DEFINITION:
        contenders["definition"] = "definition", "definition"
    used, samples = {}, []
    for role, (name, who) in contenders.items():  # one at a time, so that they do not compete for memory
        order = {"who": who, "length": length, "threads": len(cores)}
        with start_contenders((name, "bench.memory:make_measurement", order, cores)) as (process,):
            ((used[f"{role}_bytes"], *results),) = process.warm_up(steps=1)
            samples.append((process, [results]))
    for other in samples[1:]:
        check_agreement(*samples[0], *other)
    case = describe_case(Case(T=length, backward=True), len(cores))
    return {"benchmark": "memory", "case": case, "peer": PEER, **used}


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
    """Return a step whose value is the bytes that one call needed, followed by samples of its results."""
    if not CLEAR.exists():
        raise InputError(f"the memory of a single call can be measured on Linux only; this is {sys.platform}")
    cases = (Case(T=T, backward=True) for T in (TINY, length))
    tiny, whole = (ATTENTION[who](case, threads) for case in cases)
    tiny(0)

    def step(number):
        CLEAR.write_text("5")  # resets the peak
        before = _status("VmRSS")
        results = whole(number)
        return [_status("VmHWM") - before, *results]

    return step


def _status(name):
    """Return an entry of this process's status in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])
