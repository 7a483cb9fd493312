"""The processors that a process may use."""

import os

from minitransformer.system.processors import count_processors, list_processors


def test_the_processors_of_the_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5, 2}, raising=False)
    assert list_processors() == [2, 5]
    assert count_processors() == 2


def test_a_system_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for count, expected in ((3, [0, 1, 2]), (None, [0])):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert list_processors() == expected
