"""How much memory does attention need, forward and backward, as texts grow longer?

Each measurement is a fresh process: after a tiny call, which compiles and starts threads, it notes how much
memory it holds, calls once, and says by how much the peak exceeds that. q, k, v and dy were there before. So
this is what the call allocates: results and scratch memory. What is linear in T has slope 1 in a plot of
logarithms, what is quadratic 2.
"""

import math
import sys
from pathlib import Path

from bench.attention import ATTENTION, PEER, Case, described
from bench.contenders import check_agreement, started
from minitransformer.errors import InputError

LENGTHS = 1024, 2048, 4096, 8192, 16384
LONGEST_BY_DEFINITION = 4096  # of the next, the probabilities alone take gigabytes
TINY = 64
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def compare(length, cores):
    """Measure one ``length`` on ``cores``, a thread each; return the result."""
    contenders = {"ours": ("minitransformer", "kernels"), "peer": (PEER, "pytorch")}
    if length <= LONGEST_BY_DEFINITION:
        contenders["definition"] = "definition", "definition"
    used, samples = {}, []
    for role, (name, who) in contenders.items():  # one at a time: memory is what is measured
        order = {"who": who, "length": length, "threads": len(cores)}
        with started((name, "bench.memory:measured", order, cores)) as (process,):
            ((used[f"{role}_bytes"], *results),) = process.warm_up(steps=1)
            samples.append((process, [results]))
    for other in samples[1:]:
        check_agreement(*samples[0], *other)
    case = described(Case(T=length, backward=True), len(cores))
    return {"benchmark": "memory", "case": case, "peer": PEER, **used}


def slopes(results):
    """Return the slope of log memory against log T, from the shortest to the longest, of each contender."""
    found = {}
    for role in ("ours", "peer", "definition"):
        points = [
            (result["case"]["T"], result[f"{role}_bytes"]) for result in results if f"{role}_bytes" in result
        ]
        if len(points) > 1:
            (short, low), (long, high) = points[0], points[-1]
            found[role] = math.log(high / low) / math.log(long / short)
    return found


def measured(who, length, threads):
    """Return a step whose value is the bytes that one call needed, then samples of its results."""
    if not CLEAR.exists():
        raise InputError(f"only Linux can say how much a single call needed; this is {sys.platform}")
    cases = (Case(T=T, backward=True) for T in (TINY, length))
    tiny, whole = (ATTENTION[who](case, threads) for case in cases)
    tiny(0)

    def step(number):
        CLEAR.write_text("5")  # the peak is now what is held
        before = _status("VmRSS")
        results = whole(number)
        return [_status("VmHWM") - before, *results]

    return step


def _status(name):
    """Return an entry of this process's status in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])
