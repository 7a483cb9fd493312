"""The cost of a recipe on a machine that is free, and on one that is busy, by a clock that the tests turn."""

import pytest
from common.tiny_runs import tiny_model

from minitransformer import reference
from minitransformer.command import recipes as command
from minitransformer.recipes import calibration, cost, load_recipe
from minitransformer.recipes.calibration import (
    Measurement,
    calibrate,
    calibrate_alone,
    count_threads,
    measure_free_share,
)
from minitransformer.recipes.cost import Cost, estimate_cost
from minitransformer.training import TrainingArguments

COUNTS = {"train": 12, "evaluate": 20, "generate": 30}


class Clock:
    """A clock that is turned by the work that it times, a second a piece, or ``factor`` beside other work."""

    def __init__(self):
        self.now, self.factor = 0.0, 1.0

    def __call__(self):
        return self.now

    def work(self, count):
        self.now += self.factor * count


@pytest.fixture
def clock(monkeypatch):
    planted = Clock()
    monkeypatch.setattr(calibration, "perf_counter", planted)
    monkeypatch.setattr(calibration, "_make_parts", lambda *_: dict.fromkeys(COUNTS, planted.work))
    return planted


@pytest.fixture
def shares(monkeypatch):
    """Plant how much of a processor is free, one share after the other."""

    def plant(*planted):
        monkeypatch.setattr(cost, "measure_free_share", iter(planted).__next__)

    return plant


def test_what_is_quick_is_measured_whole(clock):
    measured = calibrate(None, None, COUNTS, 10_000, clock)
    assert {name: part[:2] for name, part in measured.items()} == {
        name: (count, count) for name, count in COUNTS.items()
    }


def test_slow_work_is_extrapolated_from_smaller_counts(clock):
    clock.factor = 100.0
    measured = calibrate(None, None, COUNTS, 1, clock)
    for name, count in COUNTS.items():
        assert measured[name][:2] == pytest.approx((100 * count, 100 * count))
    assert clock.now < 100 * sum(COUNTS.values())


def test_the_least_and_the_mean(clock):
    def work(count):
        clock.now += next(durations)

    durations = iter([9, 1, 2, 6, 9])  # the first is not counted: memory is traced there
    assert calibration._measure_at(work, 1, 8, clock)[:2] == (1, 3)


def test_a_moment_beside_other_work_makes_a_range(clock, shares, monkeypatch):
    factors = iter([7.0, 1.0])

    def at_some_moment(*arguments):
        clock.factor = next(factors)
        return calibrate(*arguments, clock)

    monkeypatch.setattr(cost, "calibrate", at_some_moment)
    monkeypatch.setattr(cost, "calibrate_alone", None)
    shares(0.95, 0.9, 0.99)
    measured, free = cost._measure(None, None, COUNTS)
    assert measured["train"][:2] == pytest.approx((12, 7 * 12))
    assert free == 0.9


@pytest.mark.parametrize("when", range(3))
def test_a_busy_machine_is_measured_by_processor_time(shares, monkeypatch, when):
    slow, alone = Measurement(1.0, 7.0, 3000), Measurement(0.02, 0.03, 2000)
    monkeypatch.setattr(cost, "calibrate", lambda *_: dict.fromkeys(COUNTS, slow))
    monkeypatch.setattr(cost, "calibrate_alone", lambda *_: dict.fromkeys(COUNTS, alone))
    monkeypatch.setattr(cost, "count_threads", lambda: 2)
    shares(*(0.3 if moment == when else 1.0 for moment in range(3)))
    recipe = load_recipe("sort", ["layers=1", "max_steps=1000"])
    found = estimate_cost(recipe)
    assert found.free == 0.3
    assert found.seconds[1] == pytest.approx(3 * found.seconds[0])  # 0.03 and 0.02 / 2
    assert 1000 * 0.01 < found.seconds[0] < 1500 * 0.01
    shares(1.0, 1.0, 1.0)
    assert estimate_cost(recipe).seconds[1] > 1000 * 7


def test_where_no_process_can_be_started_the_range_stays(shares, monkeypatch):
    slow = Measurement(1.0, 7.0, 3000)
    monkeypatch.setattr(cost, "calibrate", lambda *_: dict.fromkeys(COUNTS, slow))
    monkeypatch.setattr(cost, "calibrate_alone", lambda *_: None)
    shares(0.3, 0.3, 0.3)
    measured, _ = cost._measure(None, None, COUNTS)
    assert measured["generate"] == slow


@pytest.mark.parametrize("by_definitions", [False, True])
def test_a_process_of_one_thread_measures_the_same_parts(by_definitions, monkeypatch):
    orders = []
    run = calibration.subprocess.run
    monkeypatch.setattr(
        calibration.subprocess,
        "run",
        lambda *args, **settings: orders.append(settings) or run(*args, **settings),
    )
    arguments = tiny_model(), TrainingArguments(), {"train": 2, "evaluate": 2, "generate": 3}, 0.05
    if by_definitions:
        with reference():
            measured = calibrate_alone(*arguments)
    else:
        measured = calibrate_alone(*arguments)
    assert measured.keys() == COUNTS.keys()
    assert all(0 < part.least <= part.most and part.memory > 0 for part in measured.values())
    assert orders[0]["env"]["OPENBLAS_NUM_THREADS"] == "1"
    assert orders[0]["input"].endswith(f", {str(by_definitions).lower()}]")


def test_a_process_that_fails_measures_nothing():
    assert calibrate_alone(tiny_model(), TrainingArguments(), {}, 0.05) is None


def test_the_share_that_a_thread_gets(monkeypatch):
    """Four ticks of the processor to ten of the clock."""
    ticks = {"clock": 0.0, "processor": 0.0}

    def tick(name, by):
        ticks[name] += by
        return ticks[name]

    monkeypatch.setattr(calibration, "count_processors", lambda: 1)
    monkeypatch.setattr(calibration, "perf_counter", lambda: tick("clock", 1))
    monkeypatch.setattr(calibration, "thread_time", lambda: tick("processor", 0.4))
    assert measure_free_share() == pytest.approx(0.4)


def test_how_many_threads_compute(monkeypatch):
    for name in calibration.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(calibration, "count_processors", lambda: 8)
    assert count_threads() == 8
    for value, count in (("3", 3), ("99", 8), ("0", 1), ("many", 8)):
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", value)
        assert count_threads() == count


@pytest.mark.parametrize("free", [0.23, 0.97])
def test_the_command_says_that_the_machine_is_busy(free, monkeypatch, capsys):
    made = Cost(1000, 5000, 10**6, 10**9, 10**8, (108.0, 222.0), free)
    monkeypatch.setattr(command, "estimate_cost", lambda *_: made)
    command.recipes("sort", settings=None, data=None)
    shown = capsys.readouterr().out
    assert "\ntime        1.8 to 3.7 minutes\n" in shown
    assert ("This machine is busy: a thread got 23% of a processor." in shown) == (free < 0.5)


def test_the_command_says_what_is_learned_from(monkeypatch, capsys):
    monkeypatch.setattr(command, "estimate_cost", lambda *_: Cost(1, 1, 1, 1, 1, (1.0, 1.0), 1.0))
    command.recipes("python", settings=None, data=["text.txt"])
    assert capsys.readouterr().out.startswith("the settings of python, trained on text.txt\n")
