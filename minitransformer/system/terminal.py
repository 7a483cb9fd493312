"""Text for whoever sits at a terminal: lines broken between words, and durations in words."""

import textwrap

UNITS = (3600, "hours", 7197), (60, "minutes", 119.5), (1, "seconds", 0)  # and from where they are used


def fit_lines(text, console, indent=0):
    """Return ``text`` with its lines broken between words, so that they fit ``console``.

    What a line goes on with is indented by ``indent``. A word longer than a line, such as a path, stays
    whole, and so does a line that begins with a space: it is a command to be copied. Where ``console`` is no
    terminal nothing is broken.
    """
    if not console.is_terminal:
        return text
    settings = {"subsequent_indent": " " * indent, "break_long_words": False, "break_on_hyphens": False}
    width = max(console.width, indent + 1)
    return "\n".join(
        line if line.startswith(" ") else textwrap.fill(line, width, **settings) for line in text.split("\n")
    )


def format_duration(seconds):
    """Return ``seconds`` in words, in the unit that suits: "3.2 seconds", "45 seconds", "2.4 minutes"."""
    return format_duration_range(seconds, seconds)


def format_duration_range(least, most):
    """Return two durations in words, "1.8 to 2.9 minutes", or one where they look the same."""
    unit, name = next((unit, name) for unit, name, start in UNITS if most >= start)
    first, last = (
        f"{seconds:.0f}" if unit == 1 and seconds >= 9.95 else f"{seconds / unit:.1f}"
        for seconds in (least, most)
    )
    return f"{last} {name}" if first == last else f"{first} to {last} {name}"
