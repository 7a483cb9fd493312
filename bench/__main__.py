"""``python -m bench``: comparisons with peers; each prints its result and can write it as JSON."""

import functools
import importlib.util
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.contenders import TURNS, ContenderError
from bench.pictures import draw_memory_growth, draw_roofline
from bench.report import (
    describe_attention,
    format_sizes,
    format_threads,
    make_progress,
    print_means,
    print_memory,
    print_table,
    write_results,
)
from bench.step import CASES, compare, describe_case
from minitransformer.errors import InputError
from minitransformer.inspection.plots import FORMATS, check_picture, prepare_drawing
from minitransformer.system.files import check_writable
from minitransformer.system.processors import list_processors

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
    require_torch()
    check_files(json_file)
    cores = list_processors()
    counts = sorted({1, len(cores)})
    races = [
        (
            f"{case.name} ({format_sizes(describe_case(case, count))}), {format_threads(count)}",
            functools.partial(compare, case, cores[:count]),
        )
        for case in CASES
        for count in counts
    ]
    results = run_races(races)
    if json_file is not None:
        write_results(json_file, results)


@app.command()
def attention(json_file: JsonFile = None, plot_file: PlotFile = None):
    """Race attention, forward and backward, against PyTorch's, on one core and on all. Takes half an hour."""
    require_torch()
    check_files(json_file, plot_file)
    from bench import attention as benchmark  # noqa: PLC0415

    cores = list_processors()
    counts = sorted({1, len(cores)})
    races = [
        (
            describe_attention(benchmark.describe_case(case, count)),
            functools.partial(benchmark.compare, case, cores[:count]),
        )
        for count in counts
        for case in benchmark.CASES
    ]
    bandwidths = {count: benchmark.measure_bandwidth(cores[:count]) for count in counts}
    results = [
        {**result, "ceiling_gigabytes_per_second": bandwidths[result["case"]["threads"]]}
        for result in run_races(races)
    ]
    means = benchmark.compute_means(results)
    print_means(means)
    if json_file is not None:
        write_results(json_file, results, means=means)
    if plot_file is not None:
        draw_roofline(results, plot_file)


@app.command()
def memory(json_file: JsonFile = None, plot_file: PlotFile = None):
    """Measure the memory of attention, forward and backward, as T grows, here and in PyTorch."""
    require_torch()
    check_files(json_file, plot_file)
    from bench import memory as benchmark  # noqa: PLC0415

    results = []
    with make_progress() as bar:
        for length in bar.track(benchmark.LENGTHS, description="memory"):
            results.append(benchmark.compare(length, list_processors()))
    slopes = benchmark.compute_slopes(results)
    print_memory(results, slopes)
    if json_file is not None:
        write_results(json_file, results, slopes=slopes)
    if plot_file is not None:
        draw_memory_growth(results, slopes, plot_file)


@app.command()
def parity(
    data: Annotated[Path, typer.Option(help="The training text, usually tinyshakespeare.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="As in minitransformer train.")
    ] = None,
    json_file: JsonFile = None,
):
    """Train the shakespeare recipe here and in PyTorch, on the same batches from the same weights."""
    require_torch()
    check_files(json_file)
    from bench.parity import compare_training  # noqa: PLC0415  imports PyTorch

    results = [compare_training(data, settings or ())]
    print(json.dumps(results, indent=2))
    if json_file is not None:
        write_results(json_file, results)


def run_races(races):
    """Run ``races``, each a description and a function of ``advance``; print their results and return them.

    Ctrl-C stops the races and prints the results so far.
    """
    results = []
    with make_progress() as bar:
        task = bar.add_task("", total=len(races) * TURNS)
        try:
            for description, race in races:
                bar.update(task, description=description)
                results.append(race(advance=lambda: bar.advance(task)))
                bar.console.print(f"{description}; ratio {results[-1]['ratio']:.2f}")
        except KeyboardInterrupt:
            bar.stop()
            if results:
                print_table(results)
            bar.console.print(f"stopped after {len(results)} of {len(races)} races; nothing was written")
            raise typer.Exit(130) from None
    print_table(results)
    return results


def check_files(json_file, plot_file=None):
    """Raise InputError unless the files can be written, before a race that may take half an hour."""
    if plot_file is not None:
        check_picture(plot_file)
        with prepare_drawing():
            pass  # raises InputError without Matplotlib
    for path in (json_file, plot_file):
        if path is not None:
            check_writable(path)


def require_torch():
    """Raise InputError if PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            "this command compares with PyTorch, which is not installed; run pip install '.[oracle]', or the "
            "README's command, which gets PyTorch without the libraries of a GPU"
        )


def main():
    """Run the command; print an error in one line."""
    try:
        app()
    except (ContenderError, InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
