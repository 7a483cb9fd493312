"""A kernel that counts its tasks, to test the pool of threads with."""

import numpy as np
from numba import carray

from minitransformer.kernels.cpu.compiling import kernel
from minitransformer.kernels.cpu.records import Layout, address_of, take_task
from minitransformer.kernels.cpu.threads import run
from minitransformer.kernels.cpu.vectors import add_atomically, look_at, pause

COUNTING = Layout("counts", "tasks", "worker_tasks", "held")


@kernel(COUNTING, seconds=0)
def count_tasks(records, worker):
    """Add 1 to the count of each task, and of its worker.

    If ``held``, the address of two integers, is given, worker 1 writes the second and stays while the first
    is 1; worker 0 waits some milliseconds for that.
    """
    record = carray(records, (1,))[0]
    if record.held and worker == 1:
        add_atomically(record.held + 8, 1)
        while look_at(record.held):
            pause()
    looks = 0
    while record.held and look_at(record.held + 8) == 0 and looks < 10**6:
        pause()
        looks += 1
    task = take_task(record)
    while task < record.tasks:
        add_atomically(record.counts + 8 * task, 1)
        add_atomically(record.worker_tasks + 8 * worker, 1)
        task = take_task(record)
    return 0


def counted(tasks, workers, held=None):
    """Run ``tasks`` tasks; return how many each worker did, having checked that each was done once."""
    counts, worker_tasks = np.zeros(tasks + 1, np.int64), np.zeros(workers, np.int64)
    record = COUNTING(
        counts=address_of(counts),
        tasks=tasks,
        worker_tasks=address_of(worker_tasks),
        held=address_of(held),
    )
    run(count_tasks, record, 16, workers)
    np.testing.assert_array_equal(counts[:-1], 1)
    assert counts[-1] == 0
    return worker_tasks
