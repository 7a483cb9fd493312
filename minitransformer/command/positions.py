"""The command ``positions``."""

from pathlib import Path

from minitransformer.command.loading import load_trained
from minitransformer.command.options import Folder, Output
from minitransformer.inspection.plots import compute_position_table, plot_positions


def positions(folder: Folder, output: Output = Path("positions.png")):
    """Draw a model's encodings of positions."""
    _, model, _ = load_trained(folder, "cpu", "positions")
    table = compute_position_table(model)
    plot_positions(table, output, f"{model.config.positions} positions")
    print(f"{output} shows the {model.config.positions} encoding of {len(table)} positions")
