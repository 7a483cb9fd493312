"""Text for a terminal: lines wrapped to its width, and durations in words."""

import textwrap

UNITS = (3600, "hours", 7197), (60, "minutes", 119.5), (1, "seconds", 0)  # each with its least duration


def fit_lines(text, console, indent=0):
    """Return ``text`` with its lines wrapped to the width of ``console``.

    Continuation lines are indented by ``indent``. Words longer than a line, such as paths, are not broken.
    Lines that begin with a space, which are commands to copy, are not wrapped. If ``console`` is not a
    terminal, ``text`` is returned unchanged.
    """
    if not console.is_terminal:
        return text
    settings = {"subsequent_indent": " " * indent, "break_long_words": False, "break_on_hyphens": False}
    width = max(console.width, indent + 1)
    return "\n".join(
        line if line.startswith(" ") else textwrap.fill(line, width, **settings) for line in text.split("\n")
    )


def format_duration(seconds):
    """Return ``seconds`` as "3.2 seconds", "45 seconds", "2.4 minutes" or "3.0 hours"."""
    return format_duration_range(seconds, seconds)


def format_duration_range(least, most):
    """Return a range of seconds as "1.8 to 2.9 minutes"; one duration if both are rounded to the same."""
    unit, name = next((unit, name) for unit, name, start in UNITS if most >= start)
    first, last = (
        f"{seconds:.0f}" if unit == 1 and seconds >= 9.95 else f"{seconds / unit:.1f}"
        for seconds in (least, most)
    )
    return f"{last} {name}" if first == last else f"{first} to {last} {name}"
