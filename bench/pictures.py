"""Pictures of benchmark results."""

import numpy as np

from minitransformer.inspection.plots import (
    OTHER_COLOUR,
    TRAIN_COLOUR,
    VALIDATION_COLOUR,
    prepare_drawing,
    save_picture,
)

OURS, PEER, DEFINITION = VALIDATION_COLOUR, OTHER_COLOUR, TRAIN_COLOUR
OFFSET = {"textcoords": "offset points", "fontsize": 9}
MARKERS = {False: "o", True: "^"}  # causal
GRID = 0.25


@prepare_drawing()
def draw_roofline(results, path):
    """Draw the rate of every case of attention under the machine's limits, one panel per thread count.

    x: operations per byte, if only the arguments and results were moved. y: operations per second.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  slow to import, and not always needed

    counts = sorted({result["case"]["threads"] for result in results})
    figure = Figure(figsize=(6 * len(counts), 5), layout="constrained")
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for axes, count in zip(panels, counts, strict=True):
        shown = [result for result in results if result["case"]["threads"] == count]
        _roof(axes, shown)
        for result in shown:
            case = result["case"]
            style = {"marker": MARKERS[case["causal"]], "linestyle": "", "markersize": 5}
            for colour, seconds in (
                (DEFINITION, result["other_seconds"].get("definition")),
                (PEER, result["peer_seconds"]),
                (OURS, result["ours_seconds"]),
            ):
                if seconds:
                    axes.plot(result["flop_per_byte"], result["gflop"] / seconds, color=colour, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(f"attention, threads: {count}")
        axes.set_xlabel("operations per byte of arguments and results")
        axes.grid(alpha=GRID, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("GFLOP/s")
    _legend(panels[-1], results[0]["peer"])
    save_picture(figure, path)


def _roof(axes, results):
    """Draw the limits of the machine: the slope of its memory bandwidth, the roof of its matrix products."""
    rate, bandwidth = (
        max(result[name] for result in results) for name in ("ceiling_gflops", "ceiling_gigabytes_per_second")
    )
    ridge = rate / bandwidth
    most = 2 * max(result["flop_per_byte"] for result in results)
    across = np.array([ridge / 4, ridge, most])
    axes.plot(across, np.minimum(across * bandwidth, rate), color="black", linewidth=1)
    axes.annotate(f"matrix products: {rate:.0f} GFLOP/s", (most, rate), (0, 4), ha="right", **OFFSET)
    axes.annotate(f"memory: {bandwidth:.0f} GB/s", (ridge / 2, rate / 2), (6, -10), **OFFSET)


def _legend(axes, peer):
    for name, colour in (("minitransformer", OURS), (peer, PEER), ("definition", DEFINITION)):
        axes.plot([], [], "s", color=colour, label=name)
    for causal, marker in MARKERS.items():
        axes.plot([], [], marker, color="black", fillstyle="none", label="causal" if causal else "full")
    axes.legend(frameon=False, loc="lower right")


@prepare_drawing()
def draw_memory_growth(results, slopes, path):
    """Draw the memory of each contender as T grows."""
    from matplotlib.figure import Figure  # noqa: PLC0415  slow to import, and not always needed

    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axes = figure.subplots()
    names = {"definition": "definition", "peer": results[0]["peer"], "ours": "minitransformer"}
    for (role, name), colour in zip(names.items(), (DEFINITION, PEER, OURS), strict=True):
        points = [
            (result["case"]["T"], result[f"{role}_bytes"] / 2**20)
            for result in results
            if f"{role}_bytes" in result
        ]
        label = f"{name}, slope {slopes[role]:.2f}" if role in slopes else name
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    lengths = [result["case"]["T"] for result in results]
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.yaxis.set_major_formatter("{x:g}")
    case = results[0]["case"]
    axes.set_title(f"attention, forward and backward, H={case['H']}, K={case['K']}")
    axes.set_xlabel("T")
    axes.set_ylabel("memory of a call (MiB)")
    axes.grid(alpha=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_picture(figure, path)
