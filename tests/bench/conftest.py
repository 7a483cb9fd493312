"""What the tests of the benchmarks share: short races, and contenders that the tests plant."""

import pytest

from bench import contenders


@pytest.fixture(scope="session", autouse=True)
def short_races():
    """Let races take two short turns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contenders, "TURNS", 2)
        patch.setattr(contenders, "TURN_SECONDS", 0.01)
        patch.setattr(contenders, "REST_SECONDS", 0.1)
        yield


@pytest.fixture
def planted(request, tmp_path, monkeypatch):
    """Let processes that the test starts import ``planted``: the text ``PLANTED`` of its module."""
    (tmp_path / "planted.py").write_text(request.module.PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
