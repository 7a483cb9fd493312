"""What all tests share: the independent oracles, and settings that make every run the same."""

import importlib
import os
import warnings

import numpy as np
import pytest
from hypothesis import settings

pytest.register_assert_rewrite("common")  # a failing assertion there shows its values, too

NEEDS_ORACLE = "needs the oracle extra"

settings.register_profile("same every time", derandomize=True, deadline=None, database=None)
settings.load_profile("same every time")


def oracle(name):
    """Import an oracle; where it is missing skip, or fail if MINITRANSFORMER_REQUIRE_ORACLES is 1."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, while it loads
            return importlib.import_module(name)
    except ImportError:
        reason = f"{NEEDS_ORACLE}: {name} is not installed; pip install -e '.[oracle]'"
    if os.environ.get("MINITRANSFORMER_REQUIRE_ORACLES") == "1":
        pytest.fail(reason)
    return pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def signals_of_the_tests():
    """Let no signal be ignored by the tests, nor by what they start, because whoever started them does."""
    from common.processes import usual_signals

    with usual_signals():
        yield


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Keep the tests, and the processes that they start, away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINITRANSFORMER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("NUMBA_CACHE_DIR", raising=False)
        yield


@pytest.fixture(autouse=True)
def same_draws_alone_and_in_company(request):
    """Start the module's generator anew, so that what a test draws does not depend on those before it."""
    if hasattr(request.module, "RANDOM"):
        request.module.RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="session")
def torch():
    """PyTorch."""
    module = oracle("torch")
    module.set_num_threads(1)  # its pool and NumPy's would wait for each other
    return module


@pytest.fixture(scope="session")
def transformers(torch):
    """Hugging Face transformers."""
    return oracle("transformers")


def pytest_terminal_summary(terminalreporter):
    """Say how much was not compared with anything, and how long each folder took."""
    from common.budgets import seconds_by_row, table_of_times

    outcomes = [terminalreporter.stats.get(outcome, []) for outcome in ("", "passed", "failed", "error")]
    for line in table_of_times(seconds_by_row(report for reports in outcomes for report in reports)):
        terminalreporter.write_line(line)
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(NEEDS_ORACLE in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(
            f"{count} tests were skipped that compare with PyTorch or transformers: "
            "install them with pip install -e '.[oracle]'",
            yellow=True,
        )
