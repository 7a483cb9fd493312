"""Planted mistakes: the checks of this suite are worth something only if they catch wrong gradients.

Each row of a table of mistakes replaces a text in the library's own source. The check that passes on the
source as it stands must fail on the changed one.
"""

import pytest


def mutated(source, part, old, new):
    """Return ``source`` with ``old`` replaced within its ``part``."""
    assert source.count(part) == 1
    assert part.count(old) == 1, f"the text to replace is there {part.count(old)} times"
    return source.replace(part, part.replace(old, new))


def run(source, module, namespace):
    """Execute ``source`` as if it stood in ``module``; return what it defines."""
    namespace = {"__name__": module.__name__, **namespace}
    exec(compile(source, f"{module.__name__}, changed", "exec"), namespace)
    return namespace


def named(rows):
    """Parametrise a test by ``rows``, named after their first two entries."""
    return pytest.mark.parametrize("row", rows, ids=[f"{row[0]}-{row[1]}" for row in rows])
