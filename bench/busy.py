"""The time of a training step on a busy machine: ours against PyTorch eager.

The smallest step of ``bench.step``, one thread per core, on a quiet machine and beside one and two busy
processes. These have normal priority, and each a session of its own, like programs started from a desktop or
other terminals: Linux may divide the processors between sessions before it divides them between threads.
Contenders take turns, and so do the loads, so that whatever else runs on the machine affects all of them.

A factor is a contender's median beside busy processes divided by its own on the quiet machine.
"""

import contextlib
import os
import subprocess
import sys

from bench.contenders import QUICK_TURNS, ROOT, TURNS, check_agreement, start_contenders, summarise_times
from bench.step import CASES, describe_case, describe_pair
from minitransformer.system.processors import list_processors

LOADS = 0, 1, 2  # busy processes; the first is the quiet machine


def compare(case, cores, advance=lambda: None, turns=None):
    """Race a training step of ``case`` on ``cores`` beside each of ``LOADS``; return a result for each.

    ``advance`` is called after each of ``turns`` rounds, by default ``TURNS``.
    """
    seconds = {load: ([], []) for load in LOADS}
    with start_contenders(*describe_pair(case, cores)) as (ours, peer):
        our_values = ours.warm_up()
        check_agreement(ours, our_values, peer, peer.warm_up())
        for _ in range(turns or TURNS):
            for load in LOADS:
                with keep_busy(load):
                    for contender, times in zip((ours, peer), seconds[load], strict=True):
                        times.extend(contender.turn())
            advance()
    quiet = summarise_times(*seconds[0])
    results = []
    for load, (our_seconds, peer_seconds) in seconds.items():
        times = summarise_times(our_seconds, peer_seconds)
        results.append(
            {
                "benchmark": "busy",
                "case": {"name": case.name, **describe_case(case, len(cores)), "busy_processes": load},
                "peer": peer.name,
                **times,
                **{
                    f"{role}_factor": times[f"{role}_seconds"] / quiet[f"{role}_seconds"]
                    for role in ("ours", "peer")
                },
            }
        )
    return results


def compare_quickly():
    """Return the results of the laptop's step on all cores, after a few turns."""
    return compare(CASES[0], list_processors(), turns=QUICK_TURNS)


@contextlib.contextmanager
def keep_busy(count):
    """Within this block ``count`` processes spin, each in a session of its own."""
    with contextlib.ExitStack() as stack:
        spinners = [stack.enter_context(_start_spinner()) for _ in range(count)]
        for spinner in spinners:
            spinner.stdout.readline()  # it spins now
        yield spinners


@contextlib.contextmanager
def _start_spinner():
    with subprocess.Popen(
        [sys.executable, "-m", "bench.spinner", str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
