"""A small model whose attention is far from uniform, and the colours of a picture."""

import numpy as np
from PIL import Image

from minitransformer.arrays import device_module
from minitransformer.models import GPT, GPTConfig

CHARACTERS = "\n abcdefgh"
LAYERS, HEADS, CONTEXT = 2, 3, 16
IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def gpt(dtype="float64", device="cpu", **changes):
    """Return a GPT with weights so large that its attention is far from uniform."""
    settings = {
        "vocabulary_size": len(CHARACTERS),
        "context_length": CONTEXT,
        "layers": LAYERS,
        "heads": HEADS,
        "width": 12,
        "activation": "relu",
    }
    model = GPT(GPTConfig(**settings | changes)).build(seed=0, dtype=dtype, device=device)
    drawn = np.random.default_rng(5).normal(scale=0.6, size=model.flat.values.shape)
    model.flat.values[...] = device_module(device).asarray(drawn.astype(dtype))
    return model


def pixels_of(path):
    """Return the colours of a PNG file, (height, width, 3) integers from 0 to 255."""
    with Image.open(path, formats=["PNG"]) as image:
        return np.array(image.convert("RGB")).astype(int)
