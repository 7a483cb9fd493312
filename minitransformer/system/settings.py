"""Settings: their types checked, and for an unknown name the setting that was probably meant."""

import difflib
import functools
from dataclasses import fields

from minitransformer.errors import InputError, UnknownSettingError

# names in Hugging Face, nanoGPT and others, and ours
ELSEWHERE = {
    "activation_function": "activation",
    "hidden_act": "activation",
    "accumulate_grad_batches": "gradient_accumulation_steps",
    "grad_accum_steps": "gradient_accumulation_steps",
    "adam_eps": "adam_epsilon",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "block_size": "context_length",
    "max_length": "context_length",
    "max_position_embeddings": "context_length",
    "max_seq_len": "context_length",
    "n_ctx": "context_length",
    "n_positions": "context_length",
    "seq_len": "context_length",
    "sequence_length": "context_length",
    "attention_probs_dropout_prob": "dropout",
    "attn_pdrop": "dropout",
    "dropout_rate": "dropout",
    "embd_pdrop": "dropout",
    "hidden_dropout_prob": "dropout",
    "resid_pdrop": "dropout",
    "clip_grad": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "gradient_clip_val": "max_grad_norm",
    "d_ff": "feed_forward_width",
    "ffn_dim": "feed_forward_width",
    "hidden_dim": "feed_forward_width",
    "intermediate_size": "feed_forward_width",
    "n_inner": "feed_forward_width",
    "d_model": "width",
    "dim": "width",
    "embed_dim": "width",
    "hidden_size": "width",
    "n_embd": "width",
    "early_stopping": "load_best_model_at_end",
    "epochs": "num_train_epochs",
    "max_epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "eval_every": "eval_steps",
    "eval_interval": "eval_steps",
    "eval_strategy": "eval_steps",
    "evaluation_strategy": "eval_steps",
    "init_from": "pretrained",
    "model_name_or_path": "pretrained",
    "layer_norm_eps": "eps",
    "layer_norm_epsilon": "eps",
    "norm_eps": "eps",
    "iters": "max_steps",
    "lr_decay_iters": "max_steps",
    "max_iters": "max_steps",
    "num_steps": "max_steps",
    "steps": "max_steps",
    "log_interval": "logging_steps",
    "logging_strategy": "logging_steps",
    "lr": "learning_rate",
    "lr_schedule": "lr_scheduler_type",
    "scheduler": "lr_scheduler_type",
    "min_lr": "min_learning_rate",
    "n_head": "heads",
    "n_heads": "heads",
    "nhead": "heads",
    "num_attention_heads": "heads",
    "num_heads": "heads",
    "depth": "layers",
    "n_layer": "layers",
    "n_layers": "layers",
    "num_hidden_layers": "layers",
    "num_layers": "layers",
    "optimizer": "optim",
    "out_dir": "output_dir",
    "pos_encoding": "positions",
    "position_embedding_type": "positions",
    "random_seed": "seed",
    "save_every": "save_steps",
    "save_interval": "save_steps",
    "save_strategy": "save_steps",
    "decay": "weight_decay",
    "wd": "weight_decay",
    "num_warmup_steps": "warmup_steps",
    "warmup": "warmup_steps",
    "warmup_iters": "warmup_steps",
    "n_vocab": "vocabulary_size",
    "vocab_size": "vocabulary_size",
}


def check_types(settings):
    """Raise InputError for a field of the dataclass ``settings`` that is not of its annotated type.

    An integer is accepted for a float, a bool only for a bool.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        fits = isinstance(value, field.type) or (field.type is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and field.type is not bool):
            expected = getattr(field.type, "__name__", field.type)
            raise InputError(f"{field.name} is {value!r}; expected a value of type {expected}")


def suggest(name, known):
    """Return the end of a message on ``name``, not among ``known``: the nearest of these, or all of them."""
    if name in ELSEWHERE:
        close = {ELSEWHERE[name]}.intersection(known)
    else:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {next(iter(close))!r}?" if close else f"; there are {', '.join(sorted(known))}"


def check_settings(names, known):
    """Raise UnknownSettingError for those of ``names`` that are not among ``known``."""
    unknown = [f"there is no setting {name!r}{suggest(name, known)}" for name in names if name not in known]
    if unknown:
        raise UnknownSettingError(" ".join(unknown))


def reject_unknown_settings(settings):
    """Make the dataclass ``settings`` raise UnknownSettingError, with a suggestion, for unknown keywords."""
    initialise = settings.__init__
    known = {field.name for field in fields(settings)}

    @functools.wraps(initialise)
    def checked(self, *arguments, **named):
        check_settings(named, known)
        initialise(self, *arguments, **named)

    settings.__init__ = checked
    return settings
