"""How many seconds each folder of tests may take on two cores with all oracles, and how many it took."""

from collections import Counter

BUDGETS = {
    "bench": 105,
    "command": 90,
    "data": 25,
    "evaluation": 10,
    "functional": 15,
    "generation": 10,
    "gradcheck": 20,
    "inspection": 30,
    "kernels": 175,
    "layers": 15,
    "models": 15,
    "pretrained": 15,
    "recipes": 20,
    "system": 10,
    "training": 45,
    "test_tutorials.py": 95,
    "the other files": 20,
}
REPORTED_FROM = 60  # seconds of a run


def budgeted(path):
    """Return the row of ``BUDGETS`` that the tests of ``path``, such as "tests/data/test_text.py", are in."""
    place = path.removeprefix("tests/").partition("/")[0]
    return place if place in BUDGETS else "the other files"


def seconds_by_row(reports):
    """Return the seconds that the tests of each row took, by pytest's ``reports``, except of collection."""
    seconds = Counter()
    for report in reports:
        if not hasattr(report, "duration"):
            continue
        seconds[budgeted(report.nodeid.partition("::")[0])] += report.duration
    return seconds


def table_of_times(seconds):
    """Return lines that say what each row took beside its budget, the slowest first; none for a short run."""
    if sum(seconds.values()) < REPORTED_FROM:
        return []
    return [f"{taken:6.0f} s of {BUDGETS[row]:4d} s  {row}" for row, taken in Counter(seconds).most_common()]
