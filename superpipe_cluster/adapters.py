"""Adapters by PEFT around a base whose weights are still in their files: new ones, and those that were trained before.

Owns what PEFT and the streaming runtime have to be told about each other, and what is said of adapters that do not fit.
PEFT does the rest, and its folders are the format. Which base and which adapter a job means is `pretrained`'s.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superpipe_cluster.errors import BadInput, first_line
from superpipe_cluster.spec import LoraSection

if TYPE_CHECKING:
    import torch
    from torch import nn

#: Ways to begin a LoRA adapter that leave the base as it is; the others (PiSSA, OLoRA, ...) take it apart.
_LEAVES_BASE = (True, False, "gaussian", "orthogonal", "eva")
#: PEFT's names of what a job file says of an adapter.
_FIELDS = {
    "r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "target_modules": "target_modules",
    "use_rslora": "use_rslora", "dora": "use_dora", "modules_to_save": "modules_to_save",
}  # fmt: skip


class Adapter:
    """An adapter that was trained before.

    Args:
        source: its folder, or its name on the hub.
        file: its `adapter_config.json`.

    Attributes:
        config: PEFT's.
        base: the model that it adapts: a folder, or a name on the hub.

    Raises:
        BadInput: PEFT is not installed, the file is damaged or names no base, or the adapter is in no layer.
    """

    config: Any
    base: str

    def __init__(self, source: str, file: str) -> None:
        self.source = source
        self.file = file
        try:
            self.config = _peft(f"model.source: the adapter {source}").PeftConfig.from_pretrained(source)
        except BadInput:
            raise
        except Exception as error:  # whatever reading JSON and making sense of it raise
            raise self._unreadable(file, error) from error
        if self.config.is_prompt_learning or self.config.is_adaption_prompt:
            raise BadInput(
                f"model.source: {source} is an adapter of the kind {self.config.peft_type.value}, which is in no layer",
                hint="use one whose weights are in the layers of the model: LoRA, DoRA, LoHa, IA3 and their like",
            )
        if not self.config.base_model_name_or_path:
            raise BadInput(
                f"model.source: {file} does not say which model it adapts", hint=self.how_to_name_the_base
            )
        self.base = self.config.base_model_name_or_path

    @property
    def how_to_name_the_base(self) -> str:
        """What to do where the base is not there, or not the right one."""
        return f"write where the model is, a folder or a hub name, as base_model_name_or_path in {self.file}"

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """What was trained, under PEFT's names, in host memory.

        Raises:
            BadInput: it cannot be read.
        """
        try:
            return _peft().load_peft_weights(self.source, device="cpu")
        except Exception as error:  # of safetensors, pickle, the hub
            raise self._unreadable(f"the weights of the adapter {self.source}", error) from error

    @property
    def leaves_base(self) -> bool:
        """Whether the weights of the base are used as they are: neither taken apart nor overwritten."""
        brought = _modules_to_save(self.config)
        return (
            self.config.peft_type.value == "LORA"
            and self.config.init_lora_weights in _LEAVES_BASE
            and all(
                ".lora_" in name or ".trainable_tokens" in name or _is_in(name, brought)
                for name in self.weights
            )
        )

    def _unreadable(self, what: str, error: Exception) -> BadInput:
        return BadInput(
            f"model.source: cannot read {what}: {first_line(error)}",
            hint="write the adapter again with PEFT's save_pretrained()",
        )


def require_alike(lora: LoraSection, adapter: Adapter | LoraSection) -> None:
    """Refuse to train an adapter further as another one.

    Args:
        lora: what is asked for; where it is as by default, nothing is.
        adapter: the one that is there, or that another job is yet to make.

    Raises:
        BadInput: a field of `lora` asks for something that the adapter is not.
    """
    is_there = isinstance(adapter, Adapter)
    for field, name in _FIELDS.items():
        asked = _plain(getattr(lora, field))
        known = _plain(getattr(adapter.config, name, None) if is_there else getattr(adapter, field))
        if asked not in (known, _plain(getattr(LoraSection(), field))):
            which = f"the adapter {adapter.source}" if is_there else "the adapter in model.source"
            raise BadInput(
                f"finetune.lora.{field}: {asked}, but {which} has {known}, and is trained further as it is",
                hint="leave it out; or, for a new adapter, name the base as model.source",
            )


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

    modules = [name for name, _ in base.named_modules()]
    for whole in lora.modules_to_save:
        if not any(name.endswith(whole) for name in modules):  # PEFT says nothing then
            known = dict.fromkeys(name.rpartition(".")[2] for name in modules)
            raise BadInput(
                f"finetune.lora.modules_to_save: no module of {type(base).__name__} is called {whole!r}",
                hint=f"there are {', '.join(name for name in known if name and not name.isdigit())}",
            )
    asked = {name: _plain(getattr(lora, field)) for field, name in _FIELDS.items()}
    config = _peft("finetune.method: lora").LoraConfig(task_type="CAUSAL_LM", **asked)
    torch.manual_seed(seed)
    try:
        # DoRA begins with the norms of the base's weights.
        return _adapted(base, files, config, weights=weights, reads_all=lora.dora)
    except (ValueError, TypeError) as error:
        raise BadInput(
            f"finetune.lora: cannot adapt {type(base).__name__}: {first_line(error)}",
            hint="name layers in finetune.lora.target_modules, [q_proj, v_proj], or write all-linear; and modules in "
            "modules_to_save, [embed_tokens, lm_head]",
        ) from error


def put_adapter(
    base: nn.Module, files: Path | None, adapter: Adapter, *, weights: bool = True
) -> tuple[Any, Any]:
    """`base`, frozen, with an adapter in it that was trained before, and that can be trained further.

    Args:
        base: as for `add_adapter`; where the adapter does not leave it alone, with its data.
        files: as for `add_adapter`.
        adapter: the adapter.
        weights: as for `add_adapter`.

    Returns:
        As `add_adapter`.

    Raises:
        BadInput: it is an adapter for another model.
    """
    try:
        model, stored = _adapted(base, files, adapter.config, weights=weights)
        if weights:
            found = _peft().set_peft_model_state_dict(model, adapter.weights)
            own = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            misfits = [*found.unexpected_keys, *sorted(own.intersection(found.missing_keys))]
            if misfits:
                raise ValueError(f"{misfits[0]} is in one of them alone")
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # as PEFT and torch say it
        raise BadInput(
            f"model.source: the adapter {adapter.source} does not fit {type(base).__name__} of {adapter.base}: "
            f"{_misfit(error)}",
            hint=f"if it was trained on another model, {adapter.how_to_name_the_base}",
        ) from error
    adapter.config.base_model_name_or_path = adapter.base
    return model, stored


def save_adapter(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights, under PEFT's names, in host memory."""
    return {name: tensor.detach().cpu() for name, tensor in _state(model).items()}


def load_adapter(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Put the weights of a checkpoint into the adapter of a model that is not streamed yet.

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


def _adapted(
    base: nn.Module, files: Path | None, config: Any, *, weights: bool, reads_all: bool = False
) -> tuple[Any, Any]:
    """PEFT's model over `base`, and what to stream it from: the base's files, under the names that PEFT has given."""
    import torch

    from superpipe_cluster.streaming import WeightFiles

    base.requires_grad_(False)
    config.base_model_name_or_path, config.inference_mode = None, False
    names, copied = _names_of(base), _modules_to_save(config)
    stored = None if files is None else WeightFiles(files)

    def value_of(parameter: nn.Parameter) -> torch.Tensor:
        """What PEFT finds in a parameter that is on `meta`: its weights if it needs them, else all of it one number."""
        own = names[id(parameter)]
        if stored is None or not (reads_all or any(_is_in(name, copied) for name in own)):
            return torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
        value = torch.empty(parameter.shape, dtype=parameter.dtype)
        next(stored[name] for name in own if name in stored).read_into(value)
        return value

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PEFT's and transformers' calls of each other
        if weights:
            values = {parameter: value_of(parameter) for parameter in base.parameters() if parameter.is_meta}
            with _in_place_of(values, base):
                model = _peft().get_peft_model(base, config)
        else:
            model = _adapted_shape(base, config)
    # PEFT keeps sets, and writes them down in another order in each process.
    for one in model.peft_config.values():
        for field in ("target_modules", "modules_to_save"):
            if isinstance(getattr(one, field, None), set):
                setattr(one, field, sorted(getattr(one, field)))
    return model, _renamed(stored, names, model)


def renamed(files: Any, of: nn.Module, model: nn.Module) -> Any:
    """What to stream `model`, a part of another, from: that other's files, under the names that it has for them."""
    return _renamed(files, _names_of(of), model)


def _renamed(files: Any, names: Mapping[int, list[str]], model: nn.Module) -> Any:
    if files is None:
        return None
    return {
        new[0]: files[old]
        for tensor, new in _names_of(model).items()
        for old in names.get(tensor, ())
        if old in files
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


def _modules_to_save(config: Any) -> tuple[str, ...]:
    """How the names of modules end that an adapter brings along whole; not all kinds of adapters know such."""
    return tuple(getattr(config, "modules_to_save", None) or ())


def _is_in(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a parameter is in one of these modules, which are named by how their names end."""
    *path, _ = name.split(".")
    return any(".".join(path[:length]).endswith(modules) for length in range(1, len(path) + 1))


def _adapted_shape(base: nn.Module, config: Any) -> Any:
    """The adapted model of a plan. PEFT converts adapters, and fake tensors cannot be: it makes them on `meta`."""
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    known = _names_of(base).keys()
    with unset_fake_temporarily():
        values = {one: torch.empty(one.shape, dtype=one.dtype, device="meta") for one in base.parameters()}
        with _in_place_of(values, base):
            model = _peft().get_peft_model(base, config)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in known:
                empty = torch.zeros(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = torch.nn.Parameter(empty, parameter.requires_grad)
    return model


@contextmanager
def _in_place_of(values: Mapping[nn.Parameter, torch.Tensor], model: nn.Module) -> Iterator[None]:
    """In this `with`, these parameters seem to have these values: PEFT puts an adapter where its layer's weight is."""
    import torch

    own: dict[int, nn.Parameter] = {}  # by the identity of what stands in its place
    stand_ins: dict[int, nn.Parameter] = {}

    def replace(by: Mapping[int, nn.Parameter]) -> None:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in by:
                    module._parameters[name] = by[id(parameter)]

    for parameter, value in values.items():
        stand_in = torch.nn.Parameter(value, requires_grad=False)
        stand_ins[id(parameter)], own[id(stand_in)] = stand_in, parameter
    replace(stand_ins)
    try:
        yield
    finally:
        replace(own)


def _plain(value: Any) -> Any:
    """A value as PEFT writes it down: names as a list in their order, and none of them as null."""
    return sorted(value) or None if isinstance(value, tuple | list | set) else value


def _misfit(error: Exception) -> str:
    """The first thing that does not fit: torch says it below a line of its own."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[min(1, len(lines) - 1)].strip()


def _peft(what: str = "an adapter") -> Any:
    try:
        import peft
    except ImportError as error:
        raise BadInput(
            f"{what} needs peft, which is not installed here",
            hint='pip install "superpipe_cluster[lm]"',
        ) from error
    return peft
