"""Load a trained model for a command."""

import sys

from minitransformer.data.tokenizer import load_matching_tokenizer
from minitransformer.errors import InputError
from minitransformer.models.table import find_architecture
from minitransformer.pretrained.model_folder import load_config, load_model
from minitransformer.system.memory import reuse_freed_memory
from minitransformer.training.checkpoints import find_model_folder


def load_trained(folder, device, command):
    """Return ``(folder, model, tokenizer)`` of a trained model; of an unfinished run, its last checkpoint's.

    Raises InputError if ``folder`` does not exist or does not hold both, or if ``command`` does not apply to
    a model of its architecture.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    reuse_freed_memory()
    run, folder = folder, find_model_folder(folder)
    if folder != run:
        print(f"(the run in {run} is unfinished: this is its {folder.name})", file=sys.stderr)
    find_architecture(load_config(folder)).check_command(command)
    model = load_model(folder, device=device)
    return folder, model, load_matching_tokenizer(folder, model.config.vocabulary_size)
