"""The tree that ``print(model)`` shows: layers, parameters with their shapes, and sizes."""

import itertools
from typing import NamedTuple


class Node(NamedTuple):
    """A line of the tree: ``name: kind``, its own ``parts`` with their shapes, and their total ``size``."""

    name: str
    kind: str
    parts: str = ""
    size: int = 0
    children: tuple = ()

    @property
    def total(self):
        """The sum of the sizes in this tree."""
        return self.size + sum(child.total for child in self.children)


def outline(node):
    """Return the tree ``node`` as text; siblings that differ only in name are merged to one line, with ×."""
    rows = list(_iterate_rows(node, 1, 0))
    columns = list(zip(*(row for row in rows if row[2]), strict=True)) or [("",)] * 3
    label_width, parts_width, size_width = (max(map(len, column)) for column in columns)
    lines = (
        f"{label:<{label_width}}  {parts:<{parts_width}}  {size:>{size_width}}".rstrip()
        for label, parts, size in rows
    )
    return "\n".join(lines)


def _iterate_rows(node, times, depth):
    """Yield label, parts and size of ``node``, which represents ``times`` equal ones, and of its children."""
    kind = f"{times} × {node.kind}" if times > 1 else node.kind
    size = f"{times} × {node.total:,}" if times > 1 else f"{node.size:,}" if node.parts else ""
    yield "  " * depth + (f"{node.name}: {kind}" if node.name else kind), node.parts, size
    for _, alike in itertools.groupby(node.children, _without_index):
        first, *others = alike
        if others:
            first = _without_index(first)
        yield from _iterate_rows(first, 1 + len(others), depth + 1)


def _without_index(node):
    """Return ``node`` named without its list index: "blocks" for "blocks.3"."""
    stem, _, number = node.name.rpartition(".")
    return node._replace(name=stem) if number.isdigit() else node
