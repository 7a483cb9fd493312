"""What a benchmark says: progress while it runs, a table at its end, and JSON beside it."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.machine import machine
from minitransformer.files import write_json

UNITS = (1, "s"), (1e-3, "ms"), (1e-6, "µs")
SIZES = ("B", "T", "D", "H", "K", "F", "V")


def progress():
    """Return a bar on standard error; where that is no terminal, only what is printed above it is seen."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def print_table(results):
    """Print the races ``results``, one a row."""
    table = Table(
        title=f"{results[0]['benchmark']}: minitransformer and {results[0]['peer']}",
        caption="times: median (minimum); ratio, and the names after it: their time divided by ours; "
        "ceiling: share of the rate of matrix products",
        box=SIMPLE_HEAD,
    )
    table.add_column("case")
    with_passes = "pass" in results[0]["case"]
    others = list(dict.fromkeys(name for result in results for name in result["other_seconds"]))
    for name in ("threads", "ours", "peer", "ratio", *others, "ceiling"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            case_in_words(result["case"]) if with_passes else sizes(result["case"]),
            str(result["case"]["threads"]),
            _times(result, "ours"),
            _times(result, "peer"),
            f"{result['ratio']:.2f}",
            *(_ratio_to(result, name) for name in others),
            f"{result['ceiling_share']:.0%}",
        )
    Console().print(table)


def print_means(means):
    """Print the geometric means of the ratios, by what ``bench.attention.means`` groups them."""
    table = Table(title="ratios at K=64, T 512 to 4096", box=SIMPLE_HEAD)
    for name in ("threads", "pass", "mask", "geometric mean", "smallest"):
        table.add_column(name, justify="left" if name in ("pass", "mask") else "right")
    for group in means:
        threads, which, mask, mean, smallest = group.values()
        table.add_row(str(threads), which, mask, f"{mean:.2f}", f"{smallest:.2f}")
    Console().print(table)


def print_memory(results, slopes):
    """Print how many MiB each contender needed, a length a row."""
    table = Table(
        title="memory of attention, forward and backward, in MiB",
        caption="slope: of log memory against log T; 1 is linear, 2 quadratic",
        box=SIMPLE_HEAD,
    )
    columns = {"ours": "ours", "peer": results[0]["peer"], "definition": "definition"}
    for name in ("T", *columns.values()):
        table.add_column(name, justify="right")
    for result in results:
        used = (result.get(f"{role}_bytes") for role in columns)
        cells = ("–" if size is None else f"{size / 2**20:.1f}" for size in used)
        table.add_row(str(result["case"]["T"]), *cells)
    table.add_section()
    table.add_row("slope", *(f"{slopes[role]:.2f}" if role in slopes else "–" for role in columns))
    Console().print(table)


def write_results(json_file, results, **summary):
    """Write ``results`` and a ``summary`` of them with the machine they were measured on."""
    write_json(json_file, {"machine": machine(), **summary, "results": results})


def sizes(case):
    """Return the sizes of ``case`` in a few words."""
    layers = [f"{case['layers']} layers"] if "layers" in case else []
    return ", ".join([*layers, *(f"{letter}={case[letter]}" for letter in SIZES if letter in case)])


def case_in_words(case):
    """Return a case of attention in a few words."""
    dropout = f", dropout {case['dropout']}" if case["dropout"] else ""
    return f"{case['pass']}, {'causal' if case['causal'] else 'full'}, {sizes(case)}{dropout}"


def _ratio_to(result, name):
    seconds = result["other_seconds"].get(name)
    return "–" if seconds is None else f"{seconds / result['ours_seconds']:.2f}"


def _times(result, who):
    median, minimum = result[f"{who}_seconds"], result[f"{who}_minimum_seconds"]
    unit, name = next((unit, name) for unit, name in UNITS if median >= unit or name == "µs")
    return f"{median / unit:.3g} ({minimum / unit:.3g}) {name}"
