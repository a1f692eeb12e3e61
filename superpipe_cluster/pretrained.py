"""Hugging Face models of any class, as a job file names them: built so that their weights stream from their files.

Owns the building, with errors that name the field to mend; transformers does the work. Tokenizers, texts and images are
others', and what is done with the model is the worker program's.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from superpipe_cluster.errors import BadInput, SpclusterError
from superpipe_cluster.spec import ModelSection

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


def load_config(section: ModelSection, **defaults: Any) -> PreTrainedConfig:
    """The model's configuration.

    Args:
        section: the job's model section.
        defaults: what an inline configuration is given where it says nothing.

    Raises:
        BadInput: no such model class.
    """
    library = transformers()
    try:
        if section.source is not None:
            return library.AutoConfig.from_pretrained(section.source)
        return library.AutoConfig.for_model(**{**defaults, **(section.config or {})})
    except Exception as error:
        field = "model.source" if section.source is not None else "model.config"
        raise BadInput(
            f"{field}: cannot load {section.source or (section.config or {}).get('model_type')}: {first_line(error)}",
            hint="name a local folder with a config.json, a hub model, or a model_type that transformers knows",
        ) from error


def build_model(
    section: ModelSection, config: PreTrainedConfig, auto: AutoClass, *, weights: bool = True
) -> Any:
    """The model: pretrained weights, or random ones from `section.seed`.

    Args:
        section: the job's model section.
        config: its configuration.
        auto: which class of this kind of model.
        weights: False for a model of the right shape only (a plan).

    Raises:
        BadInput: there is no such class for this kind of model, or its weights cannot be loaded.
    """
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
    format: transformers has loaded and converted those, and the model holds them.

    Args:
        section: the job's model section.
        config: its configuration.
        auto: which class of this kind of model.
        saved: weights of this very model from an earlier attempt, instead of the section's.

    Raises:
        BadInput: as `build_model`, or `saved` is of another model.
    """
    from superpipe_cluster.streaming import check_weights, parameters_on_meta

    files = saved or _stored_weights(section)
    if files is None:
        return build_model(section, config, auto), None
    try:
        with parameters_on_meta():
            model = build_model(section, config, auto, weights=False)
        check_weights(model, files)
    except SpclusterError as error:
        if saved is None:  # transformers may know what to make of them, and if not, why
            return build_model(section, config, auto), None
        raise BadInput(
            f"the checkpoint is of another model: {error.message}",
            hint="give the changed job another name and submit it anew",
        ) from error
    if section.source is not None and hasattr(model, "generation_config"):
        generation = transformers().GenerationConfig
        with suppress(OSError):  # it has none of its own
            model.generation_config = generation.from_pretrained(section.source)
    return model, files


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


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
