"""Planted mistakes: the checks of this suite are worth something only if they catch wrong gradients.

Each row of a table of mistakes replaces an expression, or some statements, in the library's own source. The
check that passes on the source as it stands must fail on the changed one. Syntax trees are compared, so
comments, quotes, parentheses and line breaks make no difference.
"""

import ast
import textwrap

import pytest


def mutated(source, old, new, part=None):
    """Return ``source`` with ``old`` replaced by ``new``, within the function or class ``part`` if given.

    ``old`` and ``new`` are expressions or whole statements. Raises LookupError unless ``old`` is there
    exactly once.
    """
    tree = _parse(source)
    searched = _named(tree, part) if part else tree
    wanted, replacement = _parse(old).body, _parse(new).body
    if all(len(nodes) == 1 and isinstance(nodes[0], ast.Expr) for nodes in (wanted, replacement)):
        wanted, replacement = [wanted[0].value], [replacement[0].value]
    places = list(_places(searched, wanted))
    if len(places) != 1:
        raise LookupError(
            f"{old!r} is there {len(places)} times; expected an expression or statements that are there "
            f"once in\n{ast.unparse(searched)}"
        )
    [(node, field, index)] = places
    value = getattr(node, field)
    if isinstance(value, list):
        value[index : index + len(wanted)] = replacement
    else:
        setattr(node, field, replacement[0])
    return ast.unparse(tree)


def _parse(source):
    return ast.parse(textwrap.dedent(source))


def _named(tree, part):
    for node in tree.body:
        if getattr(node, "name", None) == part:
            return node
    raise LookupError(f"the source defines no {part!r}")


def _places(tree, wanted):
    """Yield the node, field and index of each place where the nodes ``wanted`` follow one another."""
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            there = value if isinstance(value, list) else [value]
            for index in range(len(there) - len(wanted) + 1):
                found = there[index : index + len(wanted)]
                if all(map(_equal, found, wanted)):
                    yield node, field, index


def _equal(node, other):
    """Return True if both nodes are written alike: a name that is read equals one that is assigned."""
    return type(node) is type(other) and ast.unparse(node) == ast.unparse(other)


def run(source, module, namespace):
    """Execute ``source`` as if it stood in ``module``; return what it defines."""
    namespace = {"__name__": module.__name__, **namespace}
    exec(compile(source, f"{module.__name__}, changed", "exec"), namespace)
    return namespace


def named(rows):
    """Parametrise a test by ``rows``, named after their first two entries."""
    return pytest.mark.parametrize("row", rows, ids=[f"{row[0]}-{row[1]}" for row in rows])
