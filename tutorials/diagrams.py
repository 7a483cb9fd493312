"""Draw architecture.svg and block.svg from the source: ``python -m tutorials.diagrams``.

The architecture's parts are the package's folders, each with the first sentence of its docstring; its arrows
are their imports. The block's code is that of ``PreNormBlock``, and its boxes and arrows are read from that.
"""

import ast
import textwrap

from tutorials.source_imports import LAYERS, ROOT, imported_modules, modules, part_of
from tutorials.svg import (
    BLUE,
    MONO_WIDTH,
    MUTED,
    RED,
    SANS,
    SANS_WIDTH,
    arrow,
    box,
    circle,
    line,
    picture,
    text,
)

FILLS = ["#f6f8fa", "#eef4fb", "#f1f8f2", "#fdf6e7", "#f4f0fa"]
OF_CACHE = ("cache", "positions")  # arguments of a block that matter in generation alone
ROOM = 518  # for the lines that describe a folder
LANES = ["#2f6db3", "#c8455a", "#2c8a57", "#b7791f", "#7a5bb5", "#4a8fa8", "#8c6d5a"]


def architecture():
    """Return the picture of the layers, their folders and files, and what imports what."""
    known = modules()
    parts, y = [], 56
    middles, right = {}, 826  # of each folder: where its arrows begin and end
    placed = {part for _, folders in LAYERS for part in folders}
    missing = {part_of(name) for name in known if name} ^ placed
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))}: in LAYERS or in the package, but not in both")
    edges = direct_imports(known)
    for number, (layer, folders) in enumerate(LAYERS):
        rows = [describe_folder(folder, known) for folder in folders]
        counts = [sum(part == folder for part, _ in edges) for folder in folders]
        heights = [
            max(16 * (len(role) + len(files)) + 10, 8 * count + 18)
            for (role, files), count in zip(rows, counts, strict=True)
        ]
        parts.append(box(24, y, right - 24, sum(heights) + 8, FILLS[number % len(FILLS)]))
        y += 4
        parts.append(text(40, y + 18, layer, 14, font=SANS, weight="bold"))
        for folder, (role, files), height in zip(folders, rows, heights, strict=True):
            parts.append(text(178, y + 18, title(folder, known), 13.5, weight="bold"))
            for place, words in enumerate(role):
                parts.append(text(298, y + 18 + 16 * place, words, 12.5, MUTED, SANS))
            for place, words in enumerate(files, len(role)):
                parts.append(text(298, y + 18 + 16 * place, words, 12))
            middles[folder] = y + height / 2
            y += height
        y += 12
    parts.insert(
        0, text(24, 38, "An arrow points to what is imported; all of them go down.", 13, MUTED, SANS)
    )
    parts += import_arrows(edges, middles, right)
    return picture(980, y + 14, "The layers of minitransformer, their folders, and what imports what", parts)


def describe_folder(folder, known):
    """Return the lines that say what ``folder`` is for, by its docstring, and those that name its files."""
    tree = ast.parse(known[folder].read_text(encoding="utf-8"))
    role = ast.get_docstring(tree).split("\n\n")[0].replace("\n", " ").replace("``", "")
    files = [name.removeprefix(f"{folder}.") for name in known if name.startswith(f"{folder}.")]
    names = [name for name in files if not any(other.startswith(f"{name}.") for other in files)]
    lines = []
    for inner in sorted({name.rpartition(".")[0] for name in names}):
        named = [name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == inner]
        words = " ".join([f"{inner.replace('.', '/')}/:", *named] if inner else named)
        lines += textwrap.wrap(words, int(ROOM / (12 * MONO_WIDTH)))
    return textwrap.wrap(role, int(ROOM / (12.5 * SANS_WIDTH))), lines


def title(folder, known):
    """Return ``folder`` as it is found in the repository."""
    return f"{folder}/" if known[folder].name == "__init__.py" else f"{folder}.py"


def direct_imports(known):
    """Return the pairs (part, imported part), without those that follow from others."""
    imported = {}
    for module in filter(None, known):
        here = {part_of(name) for name in imported_modules(module, known)}
        imported.setdefault(part_of(module), set()).update(here - {part_of(module)})

    def reached(part):
        return {part}.union(*(reached(other) for other in imported[part]))

    return sorted(
        (part, other)
        for part, others in imported.items()
        for other in others
        if not any(other in reached(between) for between in others - {other})
    )


def import_arrows(edges, middles, right):
    """Return an arrow for each of ``edges``; those to one part share a lane on the right, and a colour."""
    order = sorted(middles, key=middles.get)
    above = {target: [part for part in order if (part, target) in edges] for target in order}
    lanes, arrows, left_over = {}, [], {part: sum(edge[0] == part for edge in edges) for part in order}
    ends = []  # of each lane: where the last arrow in it ends
    for target in sorted((t for t in order if above[t]), key=lambda t: middles[above[t][0]]):
        start = middles[above[target][0]]
        free = [lane for lane, end in enumerate(ends) if end + 12 < start]
        lanes[target] = free[0] if free else len(ends)
        ends[lanes[target] : lanes[target] + 1] = [middles[target]]
    for target, lane in sorted(lanes.items(), key=lambda item: item[1]):
        x, colour = right + 28 + 18 * lane, LANES[lane % len(LANES)]
        for part in above[target]:
            left_over[part] -= 1
            y = middles[part] + 4 + 8 * left_over[part]
            end = middles[target] - 8
            arrows.append(arrow((right, y), (x, y), (x, end), (right, end), colour=colour))
    return arrows


def block():
    """Return the picture of a pre-norm block: its code, and how values and gradients pass through it."""
    arguments, forward, backward = block_statements()
    parts = [text(24, 36, "layers/blocks.py: PreNormBlock, without dropout and cache", 15, MUTED, SANS)]
    parts += [text(24, 72, f"def __call__({', '.join(arguments)}):", 14)]
    y = 94
    for statement in forward:
        parts.append(text(57.7, y, statement, 14, BLUE))
        y += 22
    parts.append(text(57.7, y + 22, "def backward(dy):", 14))
    for place, statement in enumerate(backward, 2):
        parts.append(text(91.4, y + 22 * place, statement, 14, RED))
    y += 22 * (len(backward) + 3)
    parts.append(text(57.7, y, "return y, backward", 14))
    parts.append(text(24, y + 36, "values go down the page", 13, BLUE, SANS))
    parts.append(text(210, y + 36, "gradients come back up the same steps", 13, RED, SANS))
    drawn, bottom = block_graph(forward, backward)
    height = max(y + 60, bottom)
    parts.append(line((590, 24), (590, height - 24)))
    label = "A transformer block: its code, and the way of the values down and of the gradients back up"
    return picture(980, height, label, parts + drawn)


def block_statements():
    """Return the arguments of ``PreNormBlock``, and the lines of its forward and of its backward."""
    tree = ast.parse((ROOT / "minitransformer/layers/blocks.py").read_text(encoding="utf-8"))
    block_class = next(node for node in tree.body if getattr(node, "name", "") == "PreNormBlock")
    call = next(node for node in block_class.body if getattr(node, "name", "") == "__call__")
    inner = next(node for node in call.body if isinstance(node, ast.FunctionDef))
    called = [node for node in call.body if isinstance(node, ast.Assign)]
    forward = [ast.unparse(_WithoutDropout().visit(node)) for node in called if not _is_dropout(node)]
    backward = [ast.unparse(_WithoutDropout().visit(node)) for node in inner.body]
    arguments = [argument.arg for argument in call.args.args if argument.arg not in OF_CACHE]
    return arguments, forward, backward


def _is_dropout(node):
    """Return whether a statement draws the keys of dropout, or applies it."""
    function = node.value.func if isinstance(node.value, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", "")) in ("dropout", "split_key")


class _WithoutDropout(ast.NodeTransformer):
    """Write f(dropout_backward(dy)) as f(dy), ``attention_key`` as ``key``, and no ``OF_CACHE``."""

    def visit_Call(self, node):
        self.generic_visit(node)
        if "dropout" in getattr(node.func, "id", ""):
            return node.args[0]
        node.args = [argument for argument in node.args if getattr(argument, "id", "") not in OF_CACHE]
        return node

    def visit_Name(self, node):
        return ast.Name("key") if node.id.endswith("_key") else node


def block_graph(forward, backward):
    """Return the boxes, sums and arrows of a block, and where they end.

    ``forward`` has a line for each layer, ``h, norm1_backward = self.norm1(x)``, and for each sum,
    ``x = x + h``; ``backward`` has one for each sum, in the reverse order.
    """
    steps = [ast.parse(statement).body[0] for statement in forward]
    sums = [ast.parse(statement).body[0].value for statement in reversed(backward)]
    parts = [text(744, 34, "x", 15, BLUE, anchor="middle"), text(796, 34, "dx", 15, RED, anchor="middle")]
    y, before = 68, 42  # where the next step begins, and where the one before it ended
    down, up = between = 744, 796  # the columns of values and of gradients
    branch = down, up, 48  # where the first term of the next sum leaves: its columns and its height
    for step in steps:
        if isinstance(step.value, ast.Call):
            parts += [box(700, y, 140, 26), text(770, y + 18, step.value.func.attr, anchor="middle")]
            parts.append(arrow((down, before), (down, y - 2), colour=BLUE))
            parts.append(arrow((up, y - 2), (up, before), colour=RED))
            before, (down, up) = y + 28, between
        else:
            centre, (down, up) = y + 13, (762, 778)
            parts += [circle(770, centre, 12), text(770, centre + 5, "+", 15, anchor="middle")]
            parts.append(arrow((down, before), (down, centre - 10), colour=BLUE))
            parts.append(arrow((up, centre - 10), (up, before), colour=RED))
            left, right, top = branch
            parts.append(arrow((left, top), (660, top), (660, centre), (757, centre), colour=BLUE))
            end = right + 1, top + 10
            parts.append(arrow((783, centre), (880, centre), (880, end[1]), end, colour=RED))
            middle = (top + centre) / 2
            gradient = ast.unparse(sums.pop(0).left)
            parts.append(text(652, middle, ast.unparse(step.value), 12, BLUE, anchor="end"))
            parts.append(text(892, middle, f"{gradient} + …", 12, RED))
            before, branch = centre + 10, (down, up, centre + 19)
        y += 52
    parts.append(arrow((down, before), (down, y + 3), colour=BLUE))
    parts.append(arrow((up, y + 3), (up, before), colour=RED))
    parts.append(text(754, y + 15, ast.unparse(steps[-1].targets[0]), 15, BLUE, anchor="end"))
    parts.append(text(788, y + 15, "dy", 15, RED))
    return parts, y + 30


def main():
    """Write both pictures into the root of the repository."""
    for name, drawn in (("architecture.svg", architecture()), ("block.svg", block())):
        (ROOT / name).write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
