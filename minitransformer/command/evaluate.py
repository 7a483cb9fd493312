"""The command ``evaluate``."""

import json

from minitransformer.command.loading import load_trained
from minitransformer.command.options import ChosenKernels, Data, Device, Folder, Kernels
from minitransformer.command.scoring import score_task, score_text, show_scoring
from minitransformer.data.text import Text
from minitransformer.data.token_file import token_file
from minitransformer.evaluation.validation import load_validation


def evaluate(
    folder: Folder, data: Data = None, device: Device = "cpu", kernels: ChosenKernels = Kernels.FUSED
):
    """Print a model's scores, as JSON.

    They are computed on the validation part of the data that it was trained on, or on other text.
    """
    folder, model, tokenizer = load_trained(folder, device, "evaluate")
    source, part = load_validation(folder, data or ())
    if not isinstance(source, Text):
        print(json.dumps(score_task(model, tokenizer, source), indent=2))
        return
    with show_scoring("making tokens") as advance:
        tokens = token_file(source, tokenizer, advance)
    print(json.dumps({**score_text(model, tokenizer, tokens, source), "text": part}, indent=2))
