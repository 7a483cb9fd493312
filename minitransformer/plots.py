"""Pictures, drawn without a screen."""

from minitransformer.files import replacing

TRAIN_COLOUR, VALIDATION_COLOUR = "#9ab8d6", "#d1495b"  # apart in luminance too, for the colour-blind


def plot_loss(metrics, path):
    """Draw the losses of ``metrics`` (the lines of ``metrics.jsonl``) over the steps into ``path``."""
    from matplotlib.figure import Figure  # noqa: PLC0415  slow to import, and most commands draw nothing

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, colour, style in (
        ("train_loss", TRAIN_COLOUR, "-"),
        ("val_loss", VALIDATION_COLOUR, "o-"),
    ):
        points = [(line["step"], line[name]) for line in metrics if line[name] is not None]
        if points:
            label = f"{name.removesuffix('_loss').replace('val', 'validation')}, last {points[-1][1]:.3f}"
            axes.plot(*zip(*points, strict=True), style, color=colour, label=label, markersize=4)
            axes.legend(frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
