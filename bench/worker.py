"""The process of a contender: ``python -m bench.worker ORDER``, started by ``bench.contenders``.

ORDER is JSON: the ``cores`` to be pinned to, the ``factory`` ("module:function") and its ``settings``. The
process is pinned before it imports anything that starts threads, then calls the factory, which returns the
function to be timed: ``step(number)``, which returns a number, or a list of them, to be compared between
contenders. Every line on standard input is a number of steps to run; every answer on standard output is a
line of JSON: the values and seconds of those steps, the page faults during them, the peak memory so far, and
how many cores were busy between the requests.
"""

import importlib
import json
import os
import sys
import time

from bench.usage import count_page_faults, read_peak_memory

SHORT = 0.05  # seconds; a contender that waited less, as one alone does, is not checked


def work(order, requests, answers):
    """Run ``order``: write a line to ``answers`` when ready, and one per line of ``requests``."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, order["cores"])
    module, function = order["factory"].split(":")
    step = getattr(importlib.import_module(module), function)(**order["settings"])

    def answer(**content):
        print(json.dumps(content), file=answers, flush=True)
        return time.process_time(), time.perf_counter()

    number, (cpu, clock) = 0, answer()
    for request in requests:
        cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
        values, seconds, faults = [], [], count_page_faults()
        for _ in range(int(request)):
            start = time.perf_counter()
            values.append(step(number))
            seconds.append(time.perf_counter() - start)
            number += 1
        cpu, clock = answer(
            values=values,
            seconds=seconds,
            page_faults=None if faults is None else count_page_faults() - faults,
            peak_bytes=read_peak_memory(),
            cores_while_idle=cpu / clock if clock > SHORT else 0.0,
        )


def main():
    """Use standard output for answers only: anything else that is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    work(json.loads(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    main()
