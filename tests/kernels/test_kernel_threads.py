"""The pool of threads: every task is done once, whatever becomes of workers, and nothing waits for ever."""

import ctypes
import os
import threading
import time

import numpy as np
import pytest
from common.counted_tasks import count_tasks, counted
from common.new_process import run as run_in_new_process

from minitransformer.kernels.cpu import threads
from minitransformer.kernels.cpu.records import address_of
from minitransformer.kernels.cpu.threads import limit_threads, run, thread_count

needs_two_threads = pytest.mark.skipif(thread_count() < 2, reason="this machine has one processor")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def in_threads(*functions):
    """Run functions in as many Python threads at once; return what they returned."""
    results = {}

    def keep(index, function):
        results[index] = function()

    started = [threading.Thread(target=keep, args=pair, daemon=True) for pair in enumerate(functions)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(60)
        assert not thread.is_alive(), "a call hangs"
    return [results[index] for index in range(len(functions))]


@pytest.mark.parametrize("workers", range(1, thread_count() + 1))
@pytest.mark.parametrize("tasks", [0, 1, 2, 1000])
def test_every_task_is_done_once(workers, tasks):
    assert counted(tasks, workers).sum() == tasks


def test_the_number_of_threads_is_limited():
    most = thread_count()
    for count in (1, most):
        with limit_threads(count):
            assert thread_count() == count
            with limit_threads(1):
                assert thread_count() == 1
            assert thread_count() == count
    with pytest.raises(KeyboardInterrupt), limit_threads(1):
        raise KeyboardInterrupt
    assert thread_count() == most
    for count in (0, -1, most + 1):
        message = rf"limit_threads: count is {count}; expected 1 to {most} \(NUMBA_NUM_THREADS\)"
        with pytest.raises(ValueError, match=message), limit_threads(count):
            pass


@needs_two_threads
def test_many_small_calls_in_a_row_and_after_sleeping():
    random, workers = np.random.default_rng(0), thread_count()
    for _ in range(2000):
        counted(2, workers)
    longest = threads.LOOKS * 60e-9
    for pause_length in random.uniform(0, 2 * longest, 400):  # while workers fall asleep, before and after
        end = time.perf_counter() + pause_length
        while time.perf_counter() < end:
            pass
        counted(2, workers)
    for _ in range(30):
        time.sleep(0.002)
        counted(1, workers)
        counted(1, 1)


@needs_two_threads
def test_every_worker_works():
    done = np.zeros(thread_count(), np.int64)
    end = time.perf_counter() + 30
    while not done.all() and time.perf_counter() < end:
        done += counted(50_000, len(done))
    assert done.all()


@needs_two_threads
def test_a_worker_that_comes_late_keeps_no_call_waiting(monkeypatch):
    """A worker that does not wake up stands for one whose core is taken away."""
    monkeypatch.setattr(threads, "_C", None)  # so that workers wait in Python
    pool = threads._Pool()
    monkeypatch.setattr(threads, "_pool", lambda: pool)
    blocked = threading.Event()

    wait = pool.wait

    def come_late(address, worker):
        blocked.wait()
        pool.workers[worker, 0] = 1

    pool.wait = come_late
    for _ in range(10):
        assert counted(100, 2)[1] == 0
    pool.wait = wait
    blocked.set()  # it enters whatever job there is, or finds it closed
    end = time.perf_counter() + 30
    while not counted(50_000, 2)[1] and time.perf_counter() < end:
        pass
    assert counted(50_000, 2).sum() == 50_000


@needs_two_threads
def test_a_call_waits_for_a_worker_in_the_middle_of_a_task():
    for _ in range(100):  # until a worker came
        held = np.array([1, 0])
        calling = threading.Thread(target=counted, args=(10, 2, held), daemon=True)
        calling.start()
        calling.join(0.2)
        if held[1]:
            break
    assert calling.is_alive()
    held[0] = 0
    calling.join(60)
    assert not calling.is_alive()


@needs_two_threads
def test_a_worker_that_is_woken_in_vain_sleeps_again():
    counted(1, 2)
    pool = threads._pool()
    for _ in range(50):
        time.sleep(0.001)
        threads._C.sem_post(ctypes.c_void_p(address_of(pool.semaphores[1])))
        assert counted(100, 2).sum() == 100
    end = time.perf_counter() + 30
    while pool.workers[1, 0] != 1 and time.perf_counter() < end:
        time.sleep(0.001)
    assert pool.workers[1, 0] == 1


@needs_two_threads
def test_workers_that_python_wakes(monkeypatch):
    """As on systems that have no semaphores in the C library."""
    monkeypatch.setattr(threads, "_C", None)
    pool = threads._Pool()
    monkeypatch.setattr(threads, "_pool", lambda: pool)
    for number in range(500):
        time.sleep(0.0002 * (number % 3))
        assert counted(20, 2).sum() == 20


def test_python_threads_call_at_once():
    workers = thread_count()
    totals = in_threads(*[lambda: sum(counted(7, workers).sum() for _ in range(300))] * 4)
    assert totals == [2100] * 4


def test_an_exception_in_a_call_leaves_the_pool_usable():
    with pytest.raises(TypeError):
        run(count_tasks, None, 16, thread_count())  # no record
    assert counted(100, thread_count()).sum() == 100


@pytest.mark.skipif(not hasattr(os, "kill"), reason="this system has no signals")
def test_ctrl_c_at_any_time_leaves_the_pool_usable():
    code = """
import os, signal, threading, time
import numpy as np
from common.counted_tasks import counted
from minitransformer.kernels.cpu.threads import thread_count
workers, interrupted, done = thread_count(), 0, threading.Event()
counted(1, workers)
def interrupt():
    random = np.random.default_rng(0)
    for wait in random.uniform(0, 0.004, 100):
        time.sleep(wait)
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    done.set()
thread = threading.Thread(target=interrupt)
started = False
while True:
    try:
        if not started:
            started = True
            thread.start()
        while not done.is_set():
            counted(20, workers)
        break
    except KeyboardInterrupt:
        interrupted += 1
for _ in range(100):
    assert counted(100, workers).sum() == 100
print(interrupted > 10)
"""
    assert run_in_new_process(code)[0] == "True\n"


@pytest.mark.parametrize("ending", ["", "import time; time.sleep(0.1)", "raise SystemExit", "os._exit(0)"])
def test_a_process_ends_while_workers_look_or_sleep(ending):
    code = f"""
import os
from common.counted_tasks import counted
from minitransformer.kernels.cpu.threads import thread_count
print(counted(100, thread_count()).sum(), flush=True)
{ending}
"""
    assert run_in_new_process(code) == ("100\n", "")


def test_one_thread_alone():
    code = """
import threading
from common.counted_tasks import counted
from minitransformer.kernels.cpu.threads import limit_threads, thread_count
with limit_threads(1):
    print(thread_count(), counted(100, thread_count()).sum(), threading.active_count())
"""
    assert run_in_new_process(code, NUMBA_NUM_THREADS="1")[0] == "1 100 1\n"


@needs_fork
def test_a_forked_process_has_a_pool_of_its_own():
    code = """
import os, threading, time
from common.counted_tasks import counted
from minitransformer.kernels.cpu.threads import thread_count
workers, done = thread_count(), threading.Event()
def work():
    while not done.is_set():
        counted(5000, workers)
busy = [threading.Thread(target=work) for _ in range(2)]
counted(1, workers)
codes = []
for count in range(20):
    if count == 10:
        for thread in busy:
            thread.start()
    child = os.fork()
    if child == 0:
        os._exit(not all(counted(1000, workers).sum() == 1000 for _ in range(20)))
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    counted(100, workers)
done.set()
print(sum(codes))
"""
    assert run_in_new_process(code)[0] == "0\n"
