"""Training: settings, the step, the trainer with its callbacks and checkpoints."""

from minitransformer.training.arguments import TrainingArguments
from minitransformer.training.callbacks import Callback, EarlyStopping, KeepBest, Samples
from minitransformer.training.progress import ProgressBar
from minitransformer.training.step import StepResult, train_step
from minitransformer.training.trainer import Prediction, Trainer, TrainOutput

__all__ = [
    "Callback",
    "EarlyStopping",
    "KeepBest",
    "Prediction",
    "ProgressBar",
    "Samples",
    "StepResult",
    "TrainOutput",
    "Trainer",
    "TrainingArguments",
    "train_step",
]
