"""The progress bar that everything shares: seen on a terminal, silent elsewhere."""

import io

import pytest
from rich.console import Console

from minitransformer.system.progress import show_progress


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(terminal):
    file = io.StringIO()
    with show_progress("making tokens", Console(file=file, force_terminal=terminal, width=80)) as report:
        report(1, 2)
    assert ("making tokens" in file.getvalue()) == terminal
    assert terminal or not file.getvalue()


def test_an_error_ends_the_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with pytest.raises(KeyError), show_progress("making tokens", console):
        raise KeyError
    assert "\x1b[?25h" in console.file.getvalue()  # shows the cursor again
