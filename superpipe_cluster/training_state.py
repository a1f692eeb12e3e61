"""What training programs have in common: the optimizer, the learning rate's schedule, checkpoints that resume exactly.

Owns the files of such a checkpoint, and those of a model that is done; and what a plan is told of a training. When a
checkpoint is written is the worker program's business, that it counts only once it is whole is `job.save`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from superpipe_cluster.errors import BadInput
from superpipe_cluster.planning import Probe
from superpipe_cluster.pretrained import transformers

if TYPE_CHECKING:
    import torch

_STATE = "training.pt"
_WEIGHTS = "model.safetensors"
_HINT = "remove the job's checkpoints to begin anew, or put the file back"

Made = TypeVar("Made")


class TrainingSettings(Protocol):
    """What a job's section says about its updates, whatever it trains."""

    @property
    def optimizer(self) -> str:
        """`adamw` or `sgd`."""
        ...

    @property
    def lr(self) -> float:
        """Learning rate, at its highest."""
        ...

    @property
    def weight_decay(self) -> float:
        """Decoupled weight decay."""
        ...

    @property
    def schedule(self) -> str:
        """`constant`, `linear` or `cosine`, after warming up."""
        ...

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises from zero."""
        ...

    @property
    def accumulate(self) -> int:
        """Micro-batches of a step."""
        ...

    @property
    def grad_clip(self) -> float | None:
        """Largest global norm of the gradients; None for no clipping."""
        ...


def make_optimizer(settings: TrainingSettings, make: Callable[..., Made]) -> Made:
    """The optimizer that the job asks for, made by `make(kind, **options)`."""
    import torch

    options = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return make(torch.optim.SGD, momentum=0.9, **options)
    return make(torch.optim.AdamW, **options)


def make_schedule(settings: TrainingSettings, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """The learning rate's schedule over so many steps, as transformers makes it."""
    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    return transformers().get_scheduler(
        name, optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=steps
    )


def training_probe(
    model: torch.nn.Module,
    step: Callable[[], None],
    settings: TrainingSettings,
    *,
    master_weights: torch.dtype | None = None,
) -> Probe:
    """What a plan has to know of a training: `step` is a micro-batch, forward and backward; updates follow settings."""
    import torch

    def clip() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip or 0.0)

    return Probe(
        model,
        step,
        lambda parameters: make_optimizer(settings, lambda kind, **options: kind(parameters, **options)),
        accumulate=settings.accumulate,
        before_update=clip if settings.grad_clip is not None else None,
        master_weights=master_weights,
    )


def weights_file(checkpoint: Path | None) -> Path | None:
    """The file of a checkpoint's weights."""
    return None if checkpoint is None else checkpoint / _WEIGHTS


def unique_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights of a model in host memory, tied ones once."""
    weights: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            weights[name] = tensor.cpu()
    return weights


def save_model(model: Any, folder: Path) -> None:
    """Write a Hugging Face model as a folder that `from_pretrained` loads, also while it is streamed.

    `model.save_pretrained` clones weights that share memory, as those of a unit do, on the device and all at once; that
    is more than a budget below the model's size holds.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    save_file(unique_weights(model), folder / _WEIGHTS, metadata={"format": "pt"})


def save_training(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    **counters: Any,
) -> None:
    """Write everything that the next step depends on; `counters` are the program's own, numbers and nulls."""
    import torch
    from safetensors.torch import save_file

    save_file(dict(weights), folder / _WEIGHTS)
    state = {
        "counters": counters,
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(state, folder / _STATE)


def load_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint.

    Raises:
        BadInput: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(checkpoint / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"the checkpoint {checkpoint / _WEIGHTS} cannot be read: {error}", hint=_HINT
        ) from error


def load_training(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> dict[str, Any]:
    """Put the rest of a checkpoint in place; returns its counters.

    Raises:
        BadInput: the file is damaged, or of another training.
    """
    import torch

    try:
        state = torch.load(folder / _STATE, weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"]:
            torch.cuda.set_rng_state_all(state["random_cuda"])
        return state["counters"]
    except Exception as error:  # pickle has many
        first = (str(error).splitlines() or [""])[0]
        raise BadInput(
            f"the checkpoint {folder / _STATE} cannot be read: {type(error).__name__}: {first}", hint=_HINT
        ) from error
