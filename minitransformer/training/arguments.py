"""All settings of a training run, with the names that users of Hugging Face's ``Trainer`` know."""

import math
from dataclasses import asdict, dataclass, fields

from minitransformer.errors import ChangedSettingError, InputError
from minitransformer.system.settings import check_types, reject_unknown_settings
from minitransformer.training.optimisers import OPTIMISERS
from minitransformer.training.schedules import SCHEDULES, scheduled_learning_rate

AT_LEAST_ONE = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "logging_steps",
    "eval_steps",
    "save_steps",
)
# settings that may change when a run is resumed: its length, its output, which checkpoints are kept
MAY_CHANGE = (
    *("output_dir", "overwrite_output_dir", "disable_tqdm"),
    *("max_steps", "num_train_epochs", "save_steps", "save_total_limit"),
)


@reject_unknown_settings
@dataclass(frozen=True)
class TrainingArguments:
    """How to train, with the field names of Hugging Face's ``TrainingArguments`` where it has one.

    A step is one update by ``per_device_train_batch_size`` · ``gradient_accumulation_steps`` examples. There
    are ``max_steps`` of them, or, if that is −1, as many as ``num_train_epochs`` passes over the data take.
    ``lr_scheduler_type`` is ``"constant"``, ``"linear"``, ``"cosine"`` or ``"inverse_sqrt"``, each after
    ``warmup_steps``; ``min_learning_rate`` is where ``linear`` and ``cosine`` end. ``optim`` is ``"adamw"``,
    or ``"sgd"`` with ``momentum``. ``max_grad_norm`` 0 means no clipping. Every ``eval_steps`` the loss on a
    fixed sample of the validation data is computed, every ``save_steps`` a checkpoint is written; the newest
    ``save_total_limit`` of them are kept, all if None. With ``load_best_model_at_end`` the run ends with the
    weights of the lowest validation loss. With ``overwrite_output_dir`` a new run first removes from the
    output folder what an earlier run wrote, and nothing else; without it such a folder is refused. Resuming
    removes nothing. ``disable_tqdm`` omits the progress bar. Impossible values raise InputError.

    A finished run continues when it is resumed with a larger ``max_steps``. The learning rate of a step is a
    function of the step and of ``max_steps``, and so from there on that of a run of the new length: where
    ``"linear"`` or ``"cosine"`` had ended at their minimum, it is higher again. ``"constant"`` and
    ``"inverse_sqrt"`` do not depend on the length: the run ends as if it had had the new length all along.

    Differences from Hugging Face's: ``max_steps`` 0 trains nothing instead of meaning "by epochs";
    ``"constant"`` warms up too; warming up takes ``warmup_steps`` + 1 equal steps, as in nanoGPT;
    ``"cosine"`` has a minimum; and some defaults.
    """

    output_dir: str = "trainer_output"
    overwrite_output_dir: bool = False
    disable_tqdm: bool = False
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    max_steps: int = -1
    num_train_epochs: float = 3.0
    learning_rate: float = 1e-3
    min_learning_rate: float = 0.0
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 0
    optim: str = "adamw"
    momentum: float = 0.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    logging_steps: int = 500
    eval_steps: int = 500
    save_steps: int = 500
    save_total_limit: int | None = None
    load_best_model_at_end: bool = False
    seed: int = 42

    def __post_init__(self):
        check_types(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            least = {"max_steps": -1, "save_total_limit": 1}.get(field.name, int(field.name in AT_LEAST_ONE))
            if not least <= value < math.inf:
                raise InputError(f"{field.name} is {value}; expected a finite number of at least {least}")
        for name in ("adam_beta1", "adam_beta2", "momentum"):
            if getattr(self, name) >= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected less than 1")
        for name, known in (("lr_scheduler_type", SCHEDULES), ("optim", OPTIMISERS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if self.adam_epsilon == 0:
            raise InputError("adam_epsilon is 0; expected a positive number")
        if self.min_learning_rate > self.learning_rate:
            raise InputError(
                f"min_learning_rate is {self.min_learning_rate}, above the learning_rate "
                f"{self.learning_rate}; set both"
            )
        if self.seed >= 2**32:
            raise InputError(f"seed is {self.seed}; expected less than 2**32")

    @property
    def rows(self):
        """The number of examples per step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def steps_for(self, dataset):
        """Return the number of training steps on ``dataset``."""
        if self.max_steps >= 0:
            return self.max_steps
        return math.ceil(self.num_train_epochs * dataset.batches_per_epoch(self.rows))

    def learning_rate_at(self, step, steps):
        """Return the learning rate of ``step`` (from 0) in a run of ``steps``."""
        return scheduled_learning_rate(
            self.lr_scheduler_type,
            step,
            learning_rate=self.learning_rate,
            min_learning_rate=self.min_learning_rate,
            warmup_steps=self.warmup_steps,
            max_steps=steps,
        )

    def check_continues(self, earlier):
        """Raise ChangedSettingError unless a run with the settings ``earlier`` can be resumed with these."""
        for name, value in asdict(self).items():
            if name not in MAY_CHANGE and earlier.get(name, value) != value:
                raise ChangedSettingError(
                    f"{name} is {value!r}, but the run to be resumed has {earlier[name]!r}; "
                    f"give the same, or start a new run in another folder"
                )
