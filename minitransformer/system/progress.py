"""Progress bars, all in one style."""

import contextlib

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def make_progress_bar(console, *columns):
    """Return a ``rich.progress.Progress`` of ``columns`` on ``console``, erased when it stops.

    By default the columns are the task's description, the bar and the time left. Where ``console`` is not a
    terminal nothing is shown.
    """
    columns = columns or (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextlib.contextmanager
def show_progress(description, console):
    """Show a bar on ``console`` while the block runs; yield a function of the work done and its total."""
    bar = make_progress_bar(console)
    task = bar.add_task(description, total=None)
    if console.is_terminal:
        bar.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        if console.is_terminal:  # rich before 14 prints an empty line elsewhere
            bar.stop()
