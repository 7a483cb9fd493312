"""The race of two contenders, each in a process of its own, and how their times are summed up.

Contenders have the same cores and as many threads, and take turns, A B C A B C, so that whatever else
the machine does meets all of them. Before any time is taken their first results must agree.

Nobody's threads may spin while another has its turn. No waiting policy is set for OpenMP: a passive one would
make PyTorch's many small parallel loops pay for waking a thread each, an active one would never let go, and
neither is what users run. As they come, OpenMP's threads (GOMP, PyTorch's on Linux) sleep after some 10 ms
without work, Intel's OpenMP's after 200 ms, and OpenBLAS's at once, as our command line tells them. So after
every turn there is a longer rest, and from then on a contender's processor time is watched: one that does not
sleep stops the race.
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

from minitransformer.command.info import THREAD_VARIABLES

WARM_UP = 3  # steps, whose results are compared
TOLERANCE = 1e-4  # relative
TURNS = 6
TURN_SECONDS = 0.3  # at least; a step that takes longer is a turn of its own
REST_SECONDS = 0.25
IDLE_CORES = 0.1  # that a contender may keep busy while it waits
SLEEP = {"OPENBLAS_THREAD_TIMEOUT": "4"}  # as our command line has it; see ``minitransformer.__main__``
ROOT = Path(__file__).parent.parent


class ContenderError(RuntimeError):
    """A contender that failed, or whose times mean nothing."""


class Contender:
    """A process that steps when told; ``seconds`` is how long its steps took.

    ``factory`` ("module:function") is called there with ``settings`` and returns what is timed; see
    ``bench.worker``. ``cores`` are the processors it stays on (where the system can do that) with one thread
    each.
    """

    def __init__(self, name, factory, settings, cores):
        self.name, self.seconds, self.steps_a_turn = name, [], 1
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
        """Wait until it is ready, do the first steps and return their values."""
        self._answer()
        first = self._run(steps)
        self.steps_a_turn = max(1, round(TURN_SECONDS / min(first["seconds"])))
        self._rest()
        return first["values"]

    def turn(self):
        """Do a turn of steps and keep their times, then rest.

        The first of several does not count: it wakes the threads and fills the caches again, milliseconds
        that a single long step does not notice.
        """
        done = self._run(self.steps_a_turn)
        if done["cores_while_idle"] > IDLE_CORES:
            raise ContenderError(
                f"{self.name} kept {done['cores_while_idle']:.1f} cores busy while it waited, so no time can "
                "be believed; is one of OMP_WAIT_POLICY, GOMP_SPINCOUNT or KMP_BLOCKTIME set?"
            )
        self.seconds += done["seconds"][1:] or done["seconds"]
        self._rest()

    def close(self):
        """End the process."""
        self._process.kill()
        with self._process, self._complaints:
            pass

    def _rest(self):
        """Give the threads the time to fall asleep, and count from there what is done while waiting."""
        time.sleep(REST_SECONDS)
        self._run(0)

    def _run(self, steps):
        with contextlib.suppress(BrokenPipeError):  # the answer that is missing tells
            print(steps, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._complaints.seek(0)
            complaints = self._complaints.read().strip() or "it said nothing"
            raise ContenderError(f"{self.name} ended with exit code {code}: {complaints.splitlines()[-1]}")
        return json.loads(line)


@contextlib.contextmanager
def started(*contenders):
    """Start ``contenders``, each the arguments of a ``Contender``, all at once; end them with the block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Contender(*arguments))) for arguments in contenders]


def race(ours, peer, *others, same=None, advance=lambda: None):
    """Let all take turns; raise ContenderError if the first results of ``ours`` and ``same`` differ.

    ``same`` is the peer alone unless it is given; the other contenders measure something besides. ``advance``
    is called after each of ``TURNS`` rounds.
    """
    our_values = ours.warm_up()
    for contender in (peer, *others):
        values = contender.warm_up()
        if contender in ([peer] if same is None else same):
            check_agreement(ours, our_values, contender, values)
    for _ in range(TURNS):
        for contender in (ours, peer, *others):
            contender.turn()
        advance()


def check_agreement(ours, our_values, peer, peer_values):
    """Raise ContenderError unless the values are the same at every step.

    A value is a number, numbers, or numbers of several results: ``TOLERANCE`` is relative to the largest of
    each.
    """
    pairs = zip(our_values, peer_values, strict=True)
    for step, (value, expected) in enumerate(pairs, start=1):
        for result, right in zip(np.atleast_2d(value), np.atleast_2d(expected), strict=True):
            difference, size = np.max(np.abs(result - right)), np.max(np.abs(right))
            if not difference <= TOLERANCE * size:
                raise ContenderError(
                    f"{ours.name} and {peer.name} do not compute the same: at step {step} their results "
                    f"differ by {difference:.1e} where they are up to {size:.6g}; no time was taken"
                )


def median_seconds(contender):
    """Return the median of its times."""
    return statistics.median(contender.seconds)


def summary(ours, peer):
    """Return the medians and minima of both and how much faster than ``peer`` ours is."""
    medians = [median_seconds(contender) for contender in (ours, peer)]
    return {
        "peer": peer.name,
        "ours_seconds": medians[0],
        "peer_seconds": medians[1],
        "ratio": medians[1] / medians[0],
        "ours_minimum_seconds": min(ours.seconds),
        "peer_minimum_seconds": min(peer.seconds),
    }
