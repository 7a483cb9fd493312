"""The command ``attention``."""

from pathlib import Path
from typing import Annotated

import typer

from minitransformer.command.console import check_text
from minitransformer.command.loading import load_trained
from minitransformer.command.options import Device, Folder, Output
from minitransformer.data.tokenizer import encode
from minitransformer.inspection.attention_maps import (
    compute_attention_maps,
    describe_left_out,
    label_tokens,
    plot_attention,
)


def attention(
    folder: Folder,
    text: Annotated[str, typer.Option(callback=check_text, help="The text that the model reads.")],
    layer: Annotated[int | None, typer.Option(help="Only this layer, counted from 0.")] = None,
    head: Annotated[int | None, typer.Option(help="Only this head, counted from 0.")] = None,
    output: Output = Path("attention.png"),
    device: Device = "cpu",
):
    """Draw the attention weights of each head on a text."""
    folder, model, tokenizer = load_trained(folder, device, "attention")
    ids = encode(tokenizer, text)
    maps, visible = compute_attention_maps(model, ids)
    plot_attention(maps, label_tokens(tokenizer, ids), output, layer=layer, head=head, visible=visible)
    print(f"{output} shows the attention weights of {len(ids)} tokens")
    print(describe_left_out(maps.shape[:2], len(ids), layer=layer, head=head), end="")
