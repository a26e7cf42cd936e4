"""Options of a training run, whatever the task. Commands nest this in a dataclass of their own as `train`."""

from dataclasses import dataclass, fields

from bertfast.options import option
from bertfast.train.errors import ConfigError
from bertfast.train.schedule import SCHEDULES


@dataclass
class TrainConfig:
    """How long, with which optimizer, in which precision, on what, and what is kept of it."""

    seed: int = option(0, "of initial weights, order, masks and dropout", low=0)
    steps: int | None = option(None, "optimizer steps of the whole run", low=1)
    epochs: float | None = option(None, "passes over the data, where steps is not given", low=0)
    batches_per_step: int = option(1, "micro-batches of one optimizer step, over all ranks", low=1)

    optimizer: str = option("adamw", choices=("adamw", "lamb"))
    learning_rate: float = option(1e-4, "highest of the schedule", low=0, flags=("--lr",))
    weight_decay: float = option(0.01, "decoupled; none on biases and layer norms", low=0)
    beta1: float = option(0.9, "decay of the mean of gradients", low=0, high=1)
    beta2: float = option(0.999, "decay of the mean of their squares", low=0, high=1)
    eps: float = option(1e-6, "added to the root of the second moment", low=0)
    warmup_steps: int | None = option(None, "updates in which the rate rises from 0", low=0)
    warmup_ratio: float = option(0.1, "share of all updates, where warmup_steps is not given", low=0, high=1)
    schedule: str = option("linear", choices=tuple(SCHEDULES))
    max_grad_norm: float = option(1.0, "global gradient norm above which gradients are scaled down; 0: never", low=0)

    precision: str = option(
        "fp32",
        "bf16: autocast with float32 weights; fp8: that, with the layers' products in FP8, on a GPU of sm_89 or newer",
        choices=("fp32", "bf16", "fp8"),
    )
    fp8_last_layers: int = option(1, "of precision fp8: how many of the last layers stay in bf16", low=0)
    fp8_gradients: str = option("e5m2", "of precision fp8: format of gradients", choices=("e5m2", "e4m3"))
    fp8_weight_gradients: bool = option(True, "of precision fp8: weights' gradients too; false: their products in bf16")
    narrow_stream: bool = option(
        False,
        "bf16 on a GPU: the residual stream in bf16 below 1024 columns too; faster, norms' gradients less exact",
    )
    gradient_checkpointing: bool = option(False, "keep less for backward, compute layers twice")
    compile: bool = option(False, "torch.compile the model")
    device: str = option("auto", "auto: a GPU where there is one", choices=("auto", "cpu", "cuda"))
    gpu_kernels: bool = option(
        True,
        "on a GPU: our kernels where they are verified; the other ops, all where false, by torch's functions",
        free=True,
    )
    cuda_graphs: bool = option(
        True,
        "on a GPU: steps as CUDA graphs, launched at once rather than kernel by kernel; the log says where not, and why",
        free=True,
    )
    parallel: str = option("ddp", "under torchrun", choices=("ddp", "fsdp"), free=True)
    threads: int | None = option(None, "torch's on a CPU; another number may change last bits", low=1, free=True)

    log_every: int = option(10, "steps between log lines", low=1, free=True)
    eval_every: int | None = option(None, "steps between evaluations; none: at the end", low=1, free=True)
    save_every: int | None = option(None, "steps between checkpoints; none: at the end", low=1, free=True)
    save_minutes: float | None = option(None, "minutes between checkpoints", low=0, free=True)
    keep: int = option(2, "newest checkpoints that are kept", low=1, free=True)
    stop_at: int | None = option(
        None, "save and end in good order after this step; resume later", low=1, free=True, passing=True
    )
    tensorboard: bool = option(False, "write event files to RUN/tensorboard", free=True)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError(f"give either steps or epochs, got steps={self.steps} and epochs={self.epochs}")
        if 1 in (self.beta1, self.beta2):
            raise ConfigError(f"beta1 and beta2 must be below 1, got {self.beta1} and {self.beta2}")

        self._check_fp8()

    def _check_fp8(self) -> None:
        if self.precision == "fp8":
            if self.compile:
                raise ConfigError(
                    "precision fp8 runs through kernels that torch.compile does not see: leave out compile"
                )
            if not self.gpu_kernels:
                raise ConfigError(
                    "precision fp8 is in the kernels that gpu_kernels false switches off: leave out one of them"
                )
            return
        for own in fields(TrainConfig):
            if own.name.startswith("fp8_") and getattr(self, own.name) != own.default:
                raise ConfigError(f"{own.name} is an option of precision fp8, and precision is {self.precision}")

    @property
    def autocasts(self) -> bool:
        """Whether forward runs under bfloat16 autocast."""
        return self.precision != "fp32"

    def micro_batches(self, ranks: int) -> int:
        """Micro-batches of one step on each rank. ConfigError where they cannot be shared out evenly."""
        if self.batches_per_step % ranks:
            raise ConfigError(
                f"batches_per_step is {self.batches_per_step}, which {ranks} ranks cannot share evenly; "
                f"choose a multiple of {ranks}"
            )
        return self.batches_per_step // ranks

    def total_steps(self, batches_per_epoch: int) -> int:
        """Optimizer steps of the whole run; the last one may begin another epoch to be full."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, -(-round(self.epochs * batches_per_epoch) // self.batches_per_step))

    def warmup(self, total: int) -> int:
        """Updates of the warm-up."""
        return self.warmup_steps if self.warmup_steps is not None else round(self.warmup_ratio * total)
