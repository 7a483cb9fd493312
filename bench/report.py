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
        caption="times: median (minimum); a ratio above 1: minitransformer is faster",
        box=SIMPLE_HEAD,
    )
    table.add_column("case")
    for name in ("threads", "ours", "peer", "ratio", "ceiling"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            sizes(result["case"]),
            str(result["case"]["threads"]),
            _times(result, "ours"),
            _times(result, "peer"),
            f"{result['ratio']:.2f}",
            f"{result['ceiling_share']:.0%}",
        )
    Console().print(table)


def write_results(json_file, results):
    """Write ``results`` with the machine they were measured on."""
    write_json(json_file, {"machine": machine(), "results": results})


def sizes(case):
    """Return the sizes of ``case`` in a few words."""
    layers = [f"{case['layers']} layers"] if "layers" in case else []
    return ", ".join([*layers, *(f"{letter}={case[letter]}" for letter in SIZES if letter in case)])


def _times(result, who):
    median, minimum = result[f"{who}_seconds"], result[f"{who}_minimum_seconds"]
    unit, name = next((unit, name) for unit, name in UNITS if median >= unit or name == "µs")
    return f"{median / unit:.3g} ({minimum / unit:.3g}) {name}"
