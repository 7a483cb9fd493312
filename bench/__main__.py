"""``python -m bench``: comparisons with peers; each prints its result and can write it as JSON."""

import functools
import importlib.util
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.contenders import TURNS, ContenderError
from bench.machine import available_cores
from bench.pictures import memory_growth, roofline
from bench.report import (
    in_words,
    print_means,
    print_memory,
    print_table,
    progress,
    sizes,
    threads,
    write_results,
)
from bench.step import CASES, compare, described
from minitransformer.errors import InputError
from minitransformer.inspection.plots import FORMATS, check_picture, drawing
from minitransformer.system.files import check_writable

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there.")]
PlotFile = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help=f"Draw the result there; one of .{', .'.join(FORMATS)}."),
]


@app.callback()
def describe():
    """Compare minitransformer with its peers."""


@app.command()
def step(json_file: JsonFile = None):
    """Race a GPT's training step against PyTorch eager, on one core and on all."""
    need_torch()
    check_files(json_file)
    cores = available_cores()
    counts = sorted({1, len(cores)})
    races = [
        (
            f"{case.name} ({sizes(described(case, count))}), {threads(count)}",
            functools.partial(compare, case, cores[:count]),
        )
        for case in CASES
        for count in counts
    ]
    results = raced(races)
    if json_file is not None:
        write_results(json_file, results)


@app.command()
def attention(json_file: JsonFile = None, plot_file: PlotFile = None):
    """Race attention, forward and backward, against PyTorch's, on one core and on all. Takes half an hour."""
    need_torch()
    check_files(json_file, plot_file)
    from bench import attention as benchmark  # noqa: PLC0415

    cores = available_cores()
    counts = sorted({1, len(cores)})
    races = [
        (
            in_words(benchmark.described(case, count)),
            functools.partial(benchmark.compare, case, cores[:count]),
        )
        for count in counts
        for case in benchmark.CASES
    ]
    bandwidths = {count: benchmark.memory_bandwidth(cores[:count]) for count in counts}
    results = [
        {**result, "ceiling_gigabytes_per_second": bandwidths[result["case"]["threads"]]}
        for result in raced(races)
    ]
    means = benchmark.means(results)
    print_means(means)
    if json_file is not None:
        write_results(json_file, results, means=means)
    if plot_file is not None:
        roofline(results, plot_file)


@app.command()
def memory(json_file: JsonFile = None, plot_file: PlotFile = None):
    """Measure the memory that attention, forward and backward, needs as texts grow, here and in PyTorch."""
    need_torch()
    check_files(json_file, plot_file)
    from bench import memory as benchmark  # noqa: PLC0415

    results = []
    with progress() as bar:
        for length in bar.track(benchmark.LENGTHS, description="memory"):
            results.append(benchmark.compare(length, available_cores()))
    slopes = benchmark.slopes(results)
    print_memory(results, slopes)
    if json_file is not None:
        write_results(json_file, results, slopes=slopes)
    if plot_file is not None:
        memory_growth(results, slopes, plot_file)


@app.command()
def parity(
    data: Annotated[Path, typer.Option(help="The text to learn, by custom tinyshakespeare.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="As in minitransformer train.")
    ] = None,
    json_file: JsonFile = None,
):
    """Train the shakespeare recipe here and in PyTorch, on the same batches from the same weights."""
    need_torch()
    check_files(json_file)
    from bench.parity import parity as run_parity  # noqa: PLC0415  not everyone has PyTorch

    results = [run_parity(data, settings or ())]
    print(json.dumps(results, indent=2))
    if json_file is not None:
        write_results(json_file, results)


def raced(races):
    """Run ``races``, each in words and as a function of ``advance``; return their results, which it shows.

    Ctrl-C ends it with what was measured so far on the screen.
    """
    results = []
    with progress() as bar:
        task = bar.add_task("", total=len(races) * TURNS)
        try:
            for words, race in races:
                bar.update(task, description=words)
                results.append(race(advance=lambda: bar.advance(task)))
                bar.console.print(f"{words}; ratio {results[-1]['ratio']:.2f}")
        except KeyboardInterrupt:
            bar.stop()
            if results:
                print_table(results)
            bar.console.print(f"stopped after {len(results)} of {len(races)} races; nothing was written")
            raise typer.Exit(130) from None
    print_table(results)
    return results


def check_files(json_file, plot_file=None):
    """Raise InputError unless what is to be written can be; a race may take half an hour."""
    if plot_file is not None:
        check_picture(plot_file)
        with drawing():
            pass  # there is what it will be drawn with
    for path in (json_file, plot_file):
        if path is not None:
            check_writable(path)


def need_torch():
    """Raise InputError where there is no PyTorch to compare with."""
    if importlib.util.find_spec("torch") is None:
        raise InputError("this needs PyTorch to compare with: pip install '.[oracle]'")


def main():
    """Run the command; tell in one line what went wrong."""
    try:
        app()
    except (ContenderError, InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
