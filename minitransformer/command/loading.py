"""Load a trained model for a command."""

import sys

from minitransformer.data.tokenizer import load_matching_tokenizer
from minitransformer.errors import InputError
from minitransformer.pretrained.model_folder import load_model
from minitransformer.system.memory import reuse_freed_memory
from minitransformer.training.checkpoints import model_folder


def load_trained(folder, device):
    """Return ``(folder, model, tokenizer)`` of a trained model; of an unfinished run, its last checkpoint's.

    Raises InputError if ``folder`` does not exist or does not hold both.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    reuse_freed_memory()
    run, folder = folder, model_folder(folder)
    if folder != run:
        print(f"(the run in {run} is unfinished: this is its {folder.name})", file=sys.stderr)
    model = load_model(folder, device=device)
    return folder, model, load_matching_tokenizer(folder, model.config.vocabulary_size)
