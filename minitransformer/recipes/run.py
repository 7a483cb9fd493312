"""A whole training run: from a recipe and a corpus to a folder with a model, its record and a figure."""

import warnings
from dataclasses import replace
from pathlib import Path

from minitransformer.data.tokenizer import id_count, load_tokenizer, start_id
from minitransformer.errors import DivergedError, InputError, Stopped
from minitransformer.inspection.plots import plot_training
from minitransformer.recipes.display import Display
from minitransformer.recipes.material import load_material
from minitransformer.recipes.run_files import RunFiles
from minitransformer.recipes.starting_model import load_pretrained
from minitransformer.system.file_names import CORPUS, PICTURE, TOKENIZER
from minitransformer.system.files import read_json
from minitransformer.training import Samples, Trainer
from minitransformer.training.checkpoints import find_checkpoints
from minitransformer.training.output import check_output_dir

SAMPLE_TOKENS = 200


def train_recipe(recipe, output_dir, data=(), device="cpu", display=None, resume=False):
    """Train ``recipe`` into ``output_dir``; return ``(model, material)``.

    ``data`` are the files, folders and patterns of a recipe whose corpus is ``"text"``; given to another
    recipe of text they replace its corpus. A recipe with ``pretrained`` starts from that model. The folder
    then holds the model in Hugging Face's layout, ``metrics.jsonl`` (one object per line), ``corpus.json``
    (the source of its text), ``run.json`` (the settings), ``training.png`` and checkpoints, from the last of
    which ``resume`` continues.

    Raises InputError for data or a folder that can't be used, and, with the picture drawn so far, Stopped
    after Ctrl-C or SIGTERM and DivergedError when the loss is no longer finite.
    """
    display, output_dir = display or Display(), Path(output_dir)
    check_output_dir(output_dir, resume, recipe.training.overwrite_output_dir)
    kept = _load_kept_tokenizer(output_dir) if resume else None
    material = load_material(recipe, data, display, kept)
    if resume:
        _check_same_source(output_dir, material.source)
    args = replace(recipe.training, output_dir=str(output_dir), disable_tqdm=True)  # the display replaces it
    config = recipe.config(id_count(material.tokenizer))
    if recipe.pretrained is None or (resume and find_checkpoints(output_dir)):
        model = recipe.architecture.model(config).build(seed=args.seed, device=device)
    else:
        model, digest = load_pretrained(recipe.pretrained, config, device)
        recipe = replace(recipe, pretrained=replace(recipe.pretrained, sha256=digest))
    callbacks = [RunFiles(recipe, material, data), display]
    if "generate" in recipe.architecture.commands:
        callbacks.append(_make_samples(material, display))
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=material.train,
        eval_dataset=material.validation,
        callbacks=callbacks,
        settings={"recipe": recipe.name},
    )
    display.begin(recipe, trainer, material)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except (DivergedError, Stopped):
        if trainer.step:
            _draw(trainer.history, output_dir / PICTURE)
        raise
    _draw(trainer.history, output_dir / PICTURE)
    return model, material


def _make_samples(material, display):
    """Return the callback that generates a sample after every evaluation."""
    prompt = material.tokenizer.encode(material.prompt).ids or [start_id(material.tokenizer)]
    return Samples(
        material.tokenizer,
        prompt,
        display.sample,
        material.answer_length or SAMPLE_TOKENS,
        temperature=0.0 if material.answer_length else 0.8,
    )


def _draw(history, path):
    """Draw the figure of a run; if that fails only warn, so that the trained model is not lost."""
    try:
        plot_training(history, path)
    except Exception as error:  # of the library, the fonts or the disk
        warnings.warn(f"{PICTURE} was not drawn: {error}", RuntimeWarning, stacklevel=3)


def _load_kept_tokenizer(output_dir):
    """Return the tokenizer of the run that is resumed, or None if it has no checkpoint yet."""
    if find_checkpoints(output_dir) and (output_dir / TOKENIZER).exists():
        return load_tokenizer(output_dir)
    return None


def _check_same_source(output_dir, source):
    path = output_dir / CORPUS
    if not (path.exists() and find_checkpoints(output_dir)):
        return
    if read_json(path).get("sha256") != source.get("sha256"):
        raise InputError(
            f"the text has changed since {output_dir} was started, so the run cannot be resumed; "
            "start a new one in another folder"
        )
