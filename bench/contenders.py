"""The race between contenders, each in its own process, and the summary of their times.

Contenders use the same cores and as many threads, and take turns, A B C A B C, so that other load on the
machine affects all of them. Before any time is measured their first results must agree.

No contender's threads may spin during another's turn. Those of our kernels look for work for some 50 µs, then
sleep (``minitransformer.kernels.cpu.threads``); those of OpenBLAS, which computes what has no kernel and the
ceiling, sleep at once, as our command line sets it. PyTorch's are OpenMP's, for which no waiting policy is
set: a passive one would add the cost of waking a thread to each of its many small parallel loops, with an
active one threads would spin forever, and users run neither. By default those of GOMP (on Linux) sleep after
some 10 ms without work, those of Intel's OpenMP after 200 ms. So every turn is followed by a longer rest,
after which a contender's processor time is measured: one that does not sleep stops the race.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from minitransformer.system.processors import THREAD_VARIABLES

WARM_UP = 3  # steps, whose results are compared
TOLERANCE = 1e-4  # relative
TURNS = 6
QUICK_TURNS = 2
TURN_SECONDS = 0.3  # at least; a longer step is a turn by itself
REST_SECONDS = 0.25
IDLE_CORES = 0.1  # the most that a contender may keep busy while it waits
SLEEP = {"OPENBLAS_THREAD_TIMEOUT": "4"}  # as our command line sets it; see ``minitransformer.__main__``
ROOT = Path(__file__).parent.parent


class ContenderError(RuntimeError):
    """A contender failed, or its times are not valid."""


class Contender:
    """A process that runs steps on request; ``seconds`` are the times of its steps.

    ``page_faults`` are those of a step, by turn; ``peak_bytes`` is the peak of its resident memory. Where the
    system does not report them, these are an empty list and None.

    ``factory`` ("module:function") is called there with ``settings`` and returns the function to be timed
    (``bench.worker``). The process is pinned to ``cores`` (if the system supports it), one thread per core.
    """

    def __init__(self, name, factory, settings, cores):
        self.name, self.seconds, self.steps_per_turn = name, [], 1
        self.page_faults, self.peak_bytes = [], None
        order = {"cores": cores, "factory": factory, "settings": settings}
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  see close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(len(cores))) | SLEEP,
            cwd=ROOT,
            encoding="utf-8",
        )

    def warm_up(self, steps=WARM_UP):
        """Wait until it is ready, run the first steps and return their values."""
        self._answer()
        first = self._run(steps)
        self.steps_per_turn = max(1, round(TURN_SECONDS / min(first["seconds"])))
        self._rest()
        return first["values"]

    def turn(self):
        """Run a turn of steps, record their times and return them, after a rest.

        The first of several steps is not recorded: it wakes the threads and fills the caches again, which
        takes milliseconds that do not matter for a single long step.
        """
        done = self._run(self.steps_per_turn)
        if done["cores_while_idle"] > IDLE_CORES:
            raise ContenderError(
                f"{self.name} kept {done['cores_while_idle']:.1f} cores busy while it waited, so no time is "
                "valid; is one of OMP_WAIT_POLICY, GOMP_SPINCOUNT or KMP_BLOCKTIME set?"
            )
        seconds = done["seconds"][1:] or done["seconds"]
        self.seconds += seconds
        if done["page_faults"] is not None:
            self.page_faults.append(done["page_faults"] / self.steps_per_turn)
        self.peak_bytes = done["peak_bytes"]
        self._rest()
        return seconds

    def close(self):
        """End the process."""
        self._process.kill()
        with self._process, self._complaints:
            pass

    def _rest(self):
        """Give the threads time to fall asleep, and start measuring processor time while waiting."""
        time.sleep(REST_SECONDS)
        self._run(0)

    def _run(self, steps):
        with contextlib.suppress(BrokenPipeError):  # _answer reports that the process ended
            print(steps, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._complaints.seek(0)
            complaints = self._complaints.read().strip() or "without a message"
            raise ContenderError(f"{self.name} ended with exit code {code}: {complaints.splitlines()[-1]}")
        return json.loads(line)


@contextlib.contextmanager
def start_contenders(*contenders):
    """Start ``contenders``, each given as arguments of ``Contender``; end them with the block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Contender(*arguments))) for arguments in contenders]


def race(ours, peer, *others, same=None, advance=lambda: None, turns=None):
    """Run all in turns; raise ContenderError if the first results of ``ours`` and ``same`` differ.

    ``same`` is the peer unless it is given; other contenders measure something else. ``advance`` is called
    after each of ``turns`` rounds, by default ``TURNS``.
    """
    our_values = ours.warm_up()
    for contender in (peer, *others):
        values = contender.warm_up()
        if contender in ([peer] if same is None else same):
            check_agreement(ours, our_values, contender, values)
    for _ in range(turns or TURNS):
        for contender in (ours, peer, *others):
            contender.turn()
        advance()


def check_agreement(ours, our_values, peer, peer_values):
    """Raise ContenderError unless the values agree at every step.

    A value is a number, a list of numbers, or one list per result; ``TOLERANCE`` is relative to the largest
    number of each list.
    """
    pairs = zip(our_values, peer_values, strict=True)
    for step, (value, expected) in enumerate(pairs, start=1):
        for result, right in zip(np.atleast_2d(value), np.atleast_2d(expected), strict=True):
            difference, size = np.max(np.abs(result - right)), np.max(np.abs(right))
            if not difference <= TOLERANCE * size:
                raise ContenderError(
                    f"{ours.name} and {peer.name} do not compute the same: at step {step} their results "
                    f"differ by {difference:.1e} where they are up to {size:.6g}; no time was measured"
                )


def compute_median(contender):
    """Return the median of the times of ``contender``."""
    return statistics.median(contender.seconds)


def summarise(ours, peer):
    """Return the peer's name and ``summarise_times`` of both."""
    return {"peer": peer.name, **summarise_times(ours.seconds, peer.seconds)}


def summarise_times(ours, peer):
    """Return the medians and minima of two lists of seconds, and the ratio of the peer's median to ours."""
    medians = [statistics.median(seconds) for seconds in (ours, peer)]
    return {
        "ours_seconds": medians[0],
        "peer_seconds": medians[1],
        "ratio": medians[1] / medians[0],
        "ours_minimum_seconds": min(ours),
        "peer_minimum_seconds": min(peer),
    }


def summarise_memory(ours, peer):
    """Return the page faults of a step after the warm-up, and the peak resident memory, of both.

    That is the peak of the whole process: in the first run kernels are compiled there.
    """
    return {
        f"{role}_{name}": value
        for role, contender in (("ours", ours), ("peer", peer))
        for name, value in (
            ("page_faults", statistics.mean(contender.page_faults) if contender.page_faults else None),
            ("peak_bytes", contender.peak_bytes),
        )
    }
