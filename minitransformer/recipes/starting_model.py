"""A model to start from (nanoGPT's ``init_from``): weights, shape and tokenizer of a model folder.

What a run needs of that folder it needs once, at its start: its checkpoints hold all the rest.
"""

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path

from minitransformer.arrays import to_numpy
from minitransformer.data.tokenizer import load_matching_tokenizer
from minitransformer.errors import InputError
from minitransformer.models.table import find_architecture
from minitransformer.pretrained.model_folder import assign, load_config, load_model
from minitransformer.training.checkpoints import find_model_folder

OF_PRETRAINED = ("dropout", "context_length")  # what may differ from the model that is started from


@dataclass(frozen=True)
class Pretrained:
    """The model in ``folder``, with the sizes that its weights are made for, and the SHA-256 of them all.

    The latter is known once they have been read.
    """

    folder: str
    vocabulary_size: int
    context_length: int
    sha256: str | None = None

    def __post_init__(self):
        for field in fields(self):
            if not isinstance(getattr(self, field.name), field.type):
                raise InputError(
                    f"the recipe is damaged: pretrained {field.name} is {vars(self)[field.name]!r}"
                )


def find_pretrained(folder):
    """Return the ``Pretrained`` in ``folder``, of a run or of another library, and its configuration."""
    if not (folder and Path(folder).is_dir()):
        raise InputError(f"pretrained is {str(folder)!r}; expected the folder of a trained model")
    config = load_config(find_model_folder(folder))
    return Pretrained(resolve_folder(folder), config.vocabulary_size, config.context_length), config


def resolve_folder(folder):
    """Return by which name a run remembers ``folder``."""
    return str(Path(folder).resolve())


def load_pretrained_tokenizer(pretrained):
    """Return the tokenizer of a ``Pretrained``."""
    return load_matching_tokenizer(find_model_folder(pretrained.folder), pretrained.vocabulary_size)


def load_pretrained(pretrained, config, device="cpu"):
    """Return the model of a ``Pretrained`` with its weights, in the shape ``config``, and their SHA-256.

    ``config`` may have another dropout and a smaller context length: positions beyond it are left out. Raises
    InputError if the weights are others than those of the SHA-256 in ``pretrained``.
    """
    source = load_model(find_model_folder(pretrained.folder), device=device)
    digest = _compute_digest(source)
    if pretrained.sha256 not in (None, digest):
        raise InputError(
            f"the weights in {pretrained.folder} have changed since the run was started; "
            "start a new one in another folder"
        )
    if config == source.config:
        return source, digest
    changed = {name: getattr(config, name) for name in OF_PRETRAINED if hasattr(config, name)}
    if replace(source.config, **changed) != config:
        raise InputError(f"the model in {pretrained.folder} has another shape than it had: {source.config}")
    model = find_architecture(config).model(config).build(seed=None, device=device)
    given = source.parameters()
    # a table of positions is the only parameter that may be shorter
    assign(model, {path: given[path].value[: own.shape[0]] for path, own in model.parameters().items()})
    return model, digest


def _compute_digest(model):
    digest = hashlib.sha256()
    for path, parameter in model.parameters().items():
        digest.update(f"{path} {parameter.shape}".encode())
        digest.update(to_numpy(parameter.value).astype("<f4").tobytes())
    return digest.hexdigest()
