"""LoRA adapters by PEFT around a base whose weights are still in their files.

Owns what PEFT and the streaming runtime have to be told about each other. PEFT does the rest, and its folders are the
format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superpipe_cluster.errors import BadInput
from superpipe_cluster.pretrained import first_line
from superpipe_cluster.spec.kinds.finetune import LoraSection

if TYPE_CHECKING:
    import torch
    from torch import nn


def add_adapter(
    base: nn.Module, files: Path | None, lora: LoraSection, seed: int, *, weights: bool = True
) -> tuple[Any, Any]:
    """`base`, frozen, with a new adapter in it: PEFT's model, with the bits that PEFT alone draws after this seed.

    Args:
        base: a causal language model, its parameters with data or on `meta`.
        files: where its weights are, as `build_to_stream` returned them; None if its parameters have their data.
        lora: what to adapt, and how.
        seed: of the adapter's first weights.
        weights: False for a model of the right shape only (a plan).

    Returns:
        The model, and what to stream its weights from: the base's files, under the names that PEFT has given.

    Raises:
        BadInput: PEFT is not installed, or finds no such layers.
    """
    import torch

    from superpipe_cluster.streaming import WeightFiles

    peft = _peft()
    base.requires_grad_(False)
    names = _names_of(base)
    targets = lora.target_modules
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets), use_rslora=lora.use_rslora,
    )  # fmt: skip
    torch.manual_seed(seed)
    try:
        if weights:
            with _in_place_of([one for one in base.parameters() if one.is_meta], base):
                model = peft.get_peft_model(base, config)
        else:
            model = _adapted_shape(base, lambda: peft.get_peft_model(base, config))
    except ValueError as error:
        raise BadInput(
            f"finetune.lora: cannot adapt {type(base).__name__}: {first_line(error)}",
            hint="name layers in finetune.lora.target_modules, [q_proj, v_proj], or write all-linear",
        ) from error
    # PEFT keeps a set, and writes it down in another order in each process.
    for one in model.peft_config.values():
        one.target_modules = sorted(one.target_modules)
    if files is None:
        return model, None
    stored = WeightFiles(files)
    return model, {
        new[0]: stored[old]
        for tensor, new in _names_of(model).items()
        for old in names.get(tensor, ())
        if old in stored
    }


def _names_of(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter and buffer, by the identity that it keeps when the modules around it change."""
    names: dict[int, list[str]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        names.setdefault(id(tensor), []).append(name)
    return names


def save_adapter(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights, under PEFT's names, in host memory."""
    return {name: tensor.detach().cpu() for name, tensor in _state(model).items()}


def load_adapter(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Put saved weights into the adapter of a model that is not streamed yet.

    Raises:
        BadInput: they are another adapter's.
    """
    own = _state(model)
    misfits = sorted(own.keys() ^ weights.keys()) or [
        name for name, tensor in own.items() if tensor.shape != weights[name].shape
    ]
    if misfits:
        raise BadInput(
            f"the checkpoint is of another adapter: {misfits[0]} does not fit",
            hint="give the changed job another name and submit it anew",
        )
    _peft().set_peft_model_state_dict(model, dict(weights))


def _state(model: Any) -> dict[str, torch.Tensor]:
    # Without a look at the hub for whether the base's vocabulary has grown.
    return _peft().get_peft_model_state_dict(model, save_embedding_layers=False)


def _adapted_shape(base: nn.Module, adapt: Callable[[], Any]) -> Any:
    """The adapted model of a plan. PEFT converts adapters, and fake tensors cannot be: it makes real ones, which go."""
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily(), _in_place_of(list(base.parameters()), base):
        model = adapt()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                empty = torch.zeros(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = torch.nn.Parameter(empty)
    return model


@contextmanager
def _in_place_of(parameters: Iterable[nn.Parameter], model: nn.Module) -> Iterator[None]:
    """In this `with`, these parameters seem to have data: PEFT puts an adapter where its layer's weight is."""
    import torch

    own: dict[int, nn.Parameter] = {}  # by the identity of what stands in its place
    stand_ins: dict[int, nn.Parameter] = {}

    def replace(by: Mapping[int, nn.Parameter]) -> None:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in by:
                    module._parameters[name] = by[id(parameter)]

    for parameter in parameters:
        one = torch.zeros((), dtype=parameter.dtype)  # all of it is this one number
        stand_in = torch.nn.Parameter(one.expand(parameter.shape), requires_grad=False)
        stand_ins[id(parameter)], own[id(stand_in)] = stand_in, parameter
    replace(stand_ins)
    try:
        yield
    finally:
        replace(own)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise BadInput(
            "finetune.method: lora needs peft, which is not installed here",
            hint='pip install "superpipe_cluster[lm]", or write method: full',
        ) from error
    return peft
