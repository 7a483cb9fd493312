"""Training: settings, the step, the trainer with its callbacks and checkpoints."""

from minitransformer.training.arguments import TrainingArguments
from minitransformer.training.callbacks import Callback, EarlyStopping, KeepBest, Samples
from minitransformer.training.progress import ProgressBar
from minitransformer.training.step import Update, update
from minitransformer.training.trainer import Prediction, Trainer, TrainOutput

__all__ = [
    "Callback",
    "EarlyStopping",
    "KeepBest",
    "Prediction",
    "ProgressBar",
    "Samples",
    "TrainOutput",
    "Trainer",
    "TrainingArguments",
    "Update",
    "update",
]
