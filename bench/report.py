"""The output of a benchmark: progress while it runs, a table at its end, and a JSON file."""

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from bench.machine import describe_machine
from minitransformer.system.files import write_json
from minitransformer.system.progress import make_progress_bar

UNITS = (1, "s"), (1e-3, "ms"), (1e-6, "µs")
SIZES = ("N", "B", "T", "D", "H", "K", "F", "V")
ROW_SIZES = ("B", "T", "K")  # in which cases of attention differ


def make_progress():
    """Return a progress bar on standard error; without a terminal only the lines printed above it appear."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    description = TextColumn("{task.description}", table_column=Column(overflow="fold"))
    return make_progress_bar(console, BarColumn(bar_width=20), TimeRemainingColumn(), description)


def print_table(results):
    """Print the ``results`` of races: a block per kind of case, with one case per row."""
    others = list(dict.fromkeys(name for result in results for name in result["other_seconds"]))
    blocks = {}
    for result in results:
        kind, name = split_case(result["case"])
        row = (
            name,
            _times(result, "ours"),
            _times(result, "peer"),
            f"{result['ratio']:.2f}",
            *(_ratio_to(result, other) for other in others),
            f"{result['ceiling_share']:.0%}",
        )
        blocks.setdefault(kind, []).append(row)
    _print_blocks(
        f"{results[0]['benchmark']}: minitransformer (ours) and {results[0]['peer']} (peer)",
        (_row_title(results[0]["case"]), "ours", "peer", "ratio", *others, "ceiling"),
        blocks,
        "times: median (minimum); ratio, and the names after it: their time divided",
        "by ours; ceiling: share of the rate of matrix products",
    )


def print_page_faults(results):
    """Print the page faults and the peak memory of the ``results`` of training steps."""
    blocks = {}
    for result in results:
        kind, name = split_case(result["case"])
        faults = ("–" if count is None else f"{count:.0f}" for count in _both(result, "page_faults"))
        blocks.setdefault(kind, []).append((name, *faults, *map(_mebibytes, _both(result, "peak_bytes"))))
    _print_blocks(
        "page faults of a step after the warm-up, and peak memory of the process in MiB",
        ("", "ours", "peer", "ours, MiB", "peer, MiB"),
        blocks,
        "page fault: a page of memory is used for the first time",
    )


def print_busy(results):
    """Print the ``results`` of a step beside busy processes, one number of them per row."""
    rows = [
        (
            str(result["case"]["busy_processes"] or "none"),
            _times(result, "ours"),
            _factor(result["ours_factor"]),
            _times(result, "peer"),
            _factor(result["peer_factor"]),
            f"{result['ratio']:.2f}",
        )
        for result in results
    ]
    case = results[0]["case"]
    _print_blocks(
        f"busy: minitransformer (ours) and {results[0]['peer']} (peer)",
        ("busy processes", "ours", "factor", "peer", "factor", "ratio"),
        {f"{format_sizes(case)}, {format_threads(case['threads'])}": rows},
        "times: median (minimum); factor: the median divided by that beside none;",
        "ratio: the peer's median divided by ours",
    )


def print_cross_entropy(results):
    """Print the times of ``results`` of cross-entropy, then the memory of a call."""
    print_table(results)
    rows = [
        (
            format_threads(result["case"]["threads"]),
            *map(_mebibytes, _both(result, "bytes")),
            f"{result['ours_bytes'] / result['peer_bytes']:.2f}",
        )
        for result in results
        if "ours_bytes" in result
    ]
    if rows:
        _print_blocks("peak memory of a call, in MiB", ("", "ours", "peer", "ours / peer"), {"": rows})


def print_means(means):
    """Print the geometric means of the ratios, by what ``bench.attention.compute_means`` groups them."""
    blocks = {}
    for group in means:
        count, which, mask, mean, smallest = group.values()
        blocks.setdefault(format_threads(count), []).append(
            (f"{which}, {mask}", f"{mean:.2f}", f"{smallest:.2f}")
        )
    _print_blocks("ratios at K=64, T 512 to 4096", ("", "geometric mean", "smallest"), blocks)


def print_memory(results, slopes):
    """Print the memory of each contender in MiB, one length per row."""
    columns = {"ours": "ours", "peer": results[0]["peer"], "definition": "definition"}
    rows = []
    for result in results:
        cells = (_mebibytes(result.get(f"{role}_bytes")) for role in columns)
        rows.append((f"T={result['case']['T']}", *cells))
    rows.append(("slope", *(f"{slopes[role]:.2f}" if role in slopes else "–" for role in columns)))
    _print_blocks(
        "memory of attention, forward and backward, in MiB",
        ("", *columns.values()),
        {"": rows},
        "slope: of log memory over log T; 1 is linear, 2 quadratic",
    )


def write_results(json_file, results, **summary):
    """Write ``results``, a ``summary`` of them and the machine on which they were measured."""
    write_json(json_file, {"machine": describe_machine(), **summary, "results": results})


def split_case(case):
    """Return the heading of the block that a case belongs to, and the title of its row."""
    if "pass" not in case:
        return format_sizes(case), format_threads(case["threads"])
    mask = "causal" if case["causal"] else "full"
    dropout = f", dropout {case['dropout']}" if case["dropout"] else ""
    kind = f"{case['pass']}, {mask}{dropout}, H={case['H']}, {format_threads(case['threads'])}"
    return kind, ", ".join(str(case[letter]) for letter in ROW_SIZES)


def describe_attention(case):
    """Return a case of attention in one line of words."""
    kind, _ = split_case(case)
    return f"{kind}, {', '.join(f'{letter}={case[letter]}' for letter in ROW_SIZES)}"


def format_sizes(case):
    """Return the sizes of ``case`` in words."""
    layers = [f"{case['layers']} layers"] if "layers" in case else []
    return ", ".join([*layers, *(f"{letter}={case[letter]}" for letter in SIZES if letter in case)])


def format_threads(count):
    """Return the number of threads in words."""
    return f"{count} thread" + "s" * (count != 1)


def _row_title(case):
    return ", ".join(ROW_SIZES) if "pass" in case else ""


def _print_blocks(title, header, blocks, *notes):
    """Print ``blocks``, ``{heading: rows}``, in columns under one ``header``; no cell is ever truncated."""
    rows = [header, *(row for block in blocks.values() for row in block)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        return "  ".join([row[0].ljust(len(first)), *others])

    lines = [title, "", line(header), "─" * len(line(header))]
    for number, (heading, block) in enumerate(blocks.items()):
        lines += [""] * (number > 0) + [heading] * bool(heading) + [line(row) for row in block]
    print("\n" + "\n".join([*lines, *([""] if notes else []), *notes]), flush=True)


def _factor(factor):
    return f"{factor:.2f} ×"


def _both(result, name):
    """Return our value and the peer's."""
    return result[f"ours_{name}"], result[f"peer_{name}"]


def _mebibytes(size):
    return "–" if size is None else f"{size / 2**20:.1f}"


def _ratio_to(result, name):
    seconds = result["other_seconds"].get(name)
    return "–" if seconds is None else f"{seconds / result['ours_seconds']:.2f}"


def _times(result, who):
    median, minimum = result[f"{who}_seconds"], result[f"{who}_minimum_seconds"]
    unit, name = next((unit, name) for unit, name in UNITS if median >= unit or name == "µs")
    return f"{median / unit:.3g} ({minimum / unit:.3g}) {name}"
