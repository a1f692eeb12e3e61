"""Hugging Face models of any class, as a job file names them: built so that their weights stream from their files.

Owns the building, with errors that name the field to mend; transformers does the work, and PEFT where the source is an
adapter. Tokenizers, texts and images are others', and what is done with the model is the worker program's.

[Note: adapters as models] Who trains all weights trains a whole model: an adapter is merged into its base
(`build_model`, `build_to_stream`). Who trains none leaves the adapter beside its base, whose frozen weights stream from
their files and can be shared with all other jobs on it (`build_frozen`). Who trains an adapter trains that one further
(`build_adapted`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from superpipe_cluster.adapters import Adapter, add_adapter, put_adapter, renamed, require_alike
from superpipe_cluster.errors import BadInput, SpclusterError, first_line
from superpipe_cluster.spec import LoraSection, ModelSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

AutoClass = Literal[
    "AutoModelForCausalLM", "AutoModel", "AutoModelForTextEncoding", "AutoModelForImageClassification"
]

_WHAT: dict[AutoClass, str] = {
    "AutoModelForCausalLM": "a causal language model",
    "AutoModel": "a model that transformers knows",
    "AutoModelForTextEncoding": "a model with a text encoder",
    "AutoModelForImageClassification": "an image classifier",
}


def find_file(source: str, name: str) -> str | None:
    """A file of a model, local or on the hub; None if it has none of this name, or there is no way to it."""
    if not Path(source).is_dir():
        return _find_on_hub(source, name)
    path = Path(source) / name
    return str(path) if path.is_file() else None


@lru_cache
def _find_on_hub(source: str, name: str) -> str | None:
    return transformers().utils.hub.cached_file(
        source,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def adapter_of(section: ModelSection) -> Adapter | None:
    """The adapter that is the model's source; None where that is a model, or where there is none.

    Raises:
        BadInput: it cannot be used.
    """
    if section.source is None:
        return None
    file = find_file(section.source, "adapter_config.json")
    return None if file is None else Adapter(section.source, file)


def base_of(section: ModelSection) -> ModelSection:
    """The section of the model itself: where the source is an adapter, that of its base.

    Raises:
        BadInput: the adapter cannot be used.
    """
    adapter = adapter_of(section)
    return section if adapter is None else section.model_copy(update={"source": adapter.base})


def tokenizer_source(section: ModelSection) -> str | None:
    """Where the model's own tokenizer is: in the source, for an adapter without one in its base; None if in neither.

    Raises:
        BadInput: the adapter cannot be used, or its base is not there.
    """
    model, adapter = section.source, adapter_of(section)
    if adapter is not None:
        load_config(section)
        if find_file(adapter.source, "tokenizer_config.json") is not None:
            return adapter.source
        model = adapter.base
    if model is None or not Path(model).is_dir():
        return model  # what is on the hub has one
    return model if any(Path(model).glob("tokenizer*")) or find_file(model, "vocab.json") else None


def load_config(section: ModelSection, **defaults: Any) -> PreTrainedConfig:
    """The model's configuration.

    Args:
        section: the job's model section.
        defaults: what an inline configuration is given where it says nothing.

    Raises:
        BadInput: no such model class.
    """
    library = transformers()
    adapter = adapter_of(section)
    source = section.source if adapter is None else adapter.base
    try:
        if source is not None:
            return library.AutoConfig.from_pretrained(source)
        return library.AutoConfig.for_model(**{**defaults, **(section.config or {})})
    except Exception as error:
        if adapter is not None:
            raise BadInput(
                f"model.source: the adapter {section.source} is for {source}, which cannot be loaded: "
                f"{first_line(error)}",
                hint=adapter.how_to_name_the_base,
            ) from error
        field = "model.source" if source is not None else "model.config"
        raise BadInput(
            f"{field}: cannot load {source or (section.config or {}).get('model_type')}: {first_line(error)}",
            hint="name a local folder with a config.json, a hub model, or a model_type that transformers knows",
        ) from error


def build_model(
    section: ModelSection, config: PreTrainedConfig, auto: AutoClass, *, weights: bool = True
) -> Any:
    """The model: pretrained weights, or random ones from `section.seed`. See [Note: adapters as models].

    Args:
        section: the job's model section.
        config: its configuration.
        auto: which class of this kind of model.
        weights: False for a model of the right shape only (a plan).

    Raises:
        BadInput: there is no such class for this kind of model, or its weights cannot be loaded.
    """
    adapter = adapter_of(section)
    if adapter is None:
        return _build_base(section, config, auto, weights=weights)
    base = _build_base(base_of(section), config, auto, weights=weights)
    # PEFT freezes what it adapts.
    return put_adapter(base, None, adapter)[0].merge_and_unload().requires_grad_(True) if weights else base


def _build_base(section: ModelSection, config: PreTrainedConfig, auto: AutoClass, *, weights: bool) -> Any:
    import torch

    factory = getattr(transformers(), auto)
    dtype: torch.dtype = getattr(torch, section.dtype)
    try:
        torch.manual_seed(section.seed)
        if section.source is not None and weights:
            # A classifier of other classes than those it was trained for has a new head.
            new_head = {"ignore_mismatched_sizes": True} if auto == "AutoModelForImageClassification" else {}
            return factory.from_pretrained(section.source, config=config, torch_dtype=dtype, **new_head)
        # Made in this format, not converted: a fake model cannot be, and buffers such as a rotary embedding's
        # frequencies keep the format that their class gives them.
        with _no_values():
            return factory.from_config(config, torch_dtype=dtype)
    except Exception as error:
        raise BadInput(
            f"model: cannot build {section.source or config.model_type}: {first_line(error)}",
            hint=f"check that it is {_WHAT[auto]} and that its weights are there",
        ) from error


def build_to_stream(
    section: ModelSection, config: PreTrainedConfig, auto: AutoClass, saved: Path | None = None
) -> tuple[Any, Path | None]:
    """The model, and the files to stream its weights from: `job.stream(model, weights=files)`.

    What is in files is not read here: the model's parameters are on `meta`, and go straight to where the runtime keeps
    them. There are no files for random weights, nor for pretrained ones that are stored under other names or in another
    format, nor for merged ones: those have been loaded and converted, and the model holds them.

    Args:
        section: the job's model section.
        config: its configuration.
        auto: which class of this kind of model.
        saved: weights of this very model from an earlier attempt, instead of the section's.

    Raises:
        BadInput: as `build_model`, or `saved` is of another model.
    """
    if adapter_of(section) is not None:
        if saved is None:
            return build_model(section, config, auto), None
        section = base_of(section)
    return _build_base_to_stream(section, config, auto, saved)


def _build_base_to_stream(
    section: ModelSection, config: PreTrainedConfig, auto: AutoClass, saved: Path | None = None
) -> tuple[Any, Path | None]:
    from superpipe_cluster.streaming import check_weights, parameters_on_meta

    files = saved or _stored_weights(section)
    if files is None:
        return _build_base(section, config, auto, weights=True), None
    try:
        with parameters_on_meta():
            model = _build_base(section, config, auto, weights=False)
        check_weights(model, files)
    except SpclusterError as error:
        if saved is None:  # transformers may know what to make of them, and if not, why
            return _build_base(section, config, auto, weights=True), None
        raise BadInput(
            f"the checkpoint is of another model: {error.message}",
            hint="give the changed job another name and submit it anew",
        ) from error
    if section.source is not None and hasattr(model, "generation_config"):
        generation = transformers().GenerationConfig
        with suppress(OSError):  # it has none of its own
            model.generation_config = generation.from_pretrained(section.source)
    return model, files


def build_frozen(
    section: ModelSection, config: PreTrainedConfig, auto: AutoClass, *, weights: bool = True
) -> tuple[Any, Any]:
    """The model to use and not to train, and what to stream its weights from. See [Note: adapters as models].

    Args:
        section: the job's model section.
        config: its configuration.
        auto: which class of this kind of model.
        weights: False for a model of the right shape only (a plan).

    Raises:
        BadInput: as `build_model`, or the adapter is for another model.
    """
    adapter, planned = adapter_of(section), section.planned_lora
    if adapter is None and planned is None:
        model, files = _base(section, config, auto, weights=weights)
        return model.eval().requires_grad_(False), files
    # An adapter of a language model is around all of it, its head too.
    is_inside = auto == "AutoModel" and (adapter is None or adapter.config.task_type == "CAUSAL_LM")
    around: AutoClass = "AutoModelForCausalLM" if is_inside else auto
    if adapter is None:
        assert planned is not None
        adapted, files = add_adapter(
            *_base(section, config, around, weights=weights), planned, 0, weights=weights
        )
    else:
        adapted, files = _put(section, config, around, adapter, weights=weights)
    # PEFT's own object only passes on what it is called with. The adapter's weights keep the mark of what is trained:
    # so they are apart from the base's, which are then the same for every job on them.
    model = adapted.get_base_model()
    model = model.base_model if is_inside else model
    return model.eval(), renamed(files, adapted, model)


def build_adapted(
    section: ModelSection, config: PreTrainedConfig, lora: LoraSection, seed: int, *, weights: bool = True
) -> tuple[Any, Any]:
    """A causal language model with an adapter to train, PEFT's object, and what to stream the base from.

    Args:
        section: the job's model section; where its source is an adapter, that one is trained further.
        config: the model's configuration.
        lora: the adapter, where it is a new one.
        seed: of its first weights.
        weights: False for a model of the right shape only (a plan).

    Raises:
        BadInput: as `build_model`, or the adapter is for another model, or is not what `lora` asks for.
    """
    adapter = adapter_of(section)
    known = adapter or section.planned_lora
    if known is not None:
        require_alike(lora, known)
    if adapter is not None:
        return _put(section, config, "AutoModelForCausalLM", adapter, weights=weights)
    base, files = _base(section, config, "AutoModelForCausalLM", weights=weights)
    return add_adapter(base, files, section.planned_lora or lora, seed, weights=weights)


def _put(
    section: ModelSection, config: PreTrainedConfig, auto: AutoClass, adapter: Adapter, *, weights: bool
) -> tuple[Any, Any]:
    """The adapter in its base, whose weights stream from their files where it leaves them as they are."""
    section = section.model_copy(update={"source": adapter.base})
    if weights and not adapter.leaves_base:
        return put_adapter(_build_base(section, config, auto, weights=True), None, adapter)
    return put_adapter(*_base(section, config, auto, weights=weights), adapter, weights=weights)


def _base(
    section: ModelSection, config: PreTrainedConfig, auto: AutoClass, *, weights: bool
) -> tuple[Any, Path | None]:
    if not weights:
        return _build_base(section, config, auto, weights=False), None
    return _build_base_to_stream(section, config, auto)


def _stored_weights(section: ModelSection) -> Path | None:
    """The safetensors file or folder of a pretrained model, fetched if it is on the hub; None if it has none."""
    if section.source is None:
        return None
    if Path(section.source).is_dir():
        return Path(section.source)
    hub = transformers().utils.hub
    for name in ("model.safetensors", "model.safetensors.index.json"):
        with suppress(OSError):  # the model has no such file, or there is no way to it
            found = hub.cached_file(section.source, name)
            if found is not None and name.endswith(".json"):
                hub.get_checkpoint_shard_files(section.source, found)
                return Path(found).parent
            if found is not None:
                return Path(found)
    return None


def _no_values() -> AbstractContextManager[Any]:
    """Leave the first values of weights out where tensors have no memory: some initializations look at them."""
    from torch._guards import detect_fake_mode

    if detect_fake_mode() is None:
        return nullcontext()
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # transformers 4
        from transformers.modeling_utils import no_init_weights  # pyright: ignore[reportAttributeAccessIssue]
    return no_init_weights()


def transformers(extra: str = "lm") -> Any:
    """The library, quiet.

    Args:
        extra: what of this package brings it along, for the hint.

    Raises:
        BadInput: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise BadInput(
            "the bundled workers for Hugging Face models need transformers, which is not installed here",
            hint=f'pip install "superpipe_cluster[{extra}]"',
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
