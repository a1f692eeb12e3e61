"""Language models as a job file names them: the model, its tokenizer, its texts.

Owns loading, with errors that name the field to mend; Hugging Face's libraries do the work. What is done with the model
is the worker program's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from superpipe_cluster.errors import BadInput, FileMissing, SpclusterError
from superpipe_cluster.spec import DataSection, ModelSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


class Tokenizer(Protocol):
    """What the workers need of a tokenizer."""

    eos_token_id: int

    def __len__(self) -> int:
        """Tokens that the model must know."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        ...

    def save(self, folder: Path) -> None:
        """Write what is needed to load it again beside a model."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as tokens 0 to 255, and 256 for the end of a text. Needs no files."""

    eos_token_id = 256

    def __len__(self) -> int:
        """257: the bytes and the end."""
        return 257

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of byte tokens; what is no byte is left out, what is no UTF-8 becomes a replacement character."""
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Nothing: a model without tokenizer files is read with bytes."""


class _PretrainedTokenizer:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id: int = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0

    def __len__(self) -> int:
        return len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)


def load_tokenizer(section: ModelSection) -> Tokenizer:
    """The tokenizer of a model section: the named one, else the source's own, else bytes.

    Raises:
        BadInput: it cannot be loaded.
    """
    named = section.tokenizer
    if named is None and section.source is not None and _has_tokenizer(section.source):
        named = section.source
    if named is None or named == "bytes":
        return ByteTokenizer()
    transformers = _transformers()
    try:
        return _PretrainedTokenizer(transformers.AutoTokenizer.from_pretrained(named))
    except Exception as error:
        raise BadInput(
            f"model.tokenizer: cannot load {named}: {_first_line(error)}",
            hint="name a folder or a hub model that has a tokenizer, or write `tokenizer: bytes`",
        ) from error


def load_config(section: ModelSection, tokenizer: Tokenizer) -> PreTrainedConfig:
    """The model's configuration, checked against its tokenizer.

    Raises:
        BadInput: no such model class, or a vocabulary that is too small.
    """
    transformers = _transformers()
    try:
        if section.source is not None:
            config = transformers.AutoConfig.from_pretrained(section.source)
        else:
            wanted: dict[str, Any] = dict(section.config or {})
            wanted.setdefault("vocab_size", len(tokenizer))
            # The class's own ids belong to its own vocabulary, not to this one.
            for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
                wanted.setdefault(token, tokenizer.eos_token_id)
            config = transformers.AutoConfig.for_model(**wanted)
    except Exception as error:
        field = "model.source" if section.source is not None else "model.config"
        raise BadInput(
            f"{field}: cannot load {section.source or (section.config or {}).get('model_type')}: {_first_line(error)}",
            hint="name a local folder with a config.json, a hub model, or a model_type that transformers knows",
        ) from error
    if getattr(config, "vocab_size", len(tokenizer)) < len(tokenizer):
        raise BadInput(
            f"model.config.vocab_size: {config.vocab_size} is less than the {len(tokenizer)} tokens of the tokenizer",
            hint=f"use vocab_size: {len(tokenizer)} or more, or another tokenizer",
        )
    return config


def build_model(section: ModelSection, config: PreTrainedConfig, *, weights: bool = True) -> PreTrainedModel:
    """The causal language model: pretrained weights, or random ones from `section.seed`.

    Args:
        section: the job's model section.
        config: what `load_config` returned for it.
        weights: False for a model of the right shape only (a plan).

    Raises:
        BadInput: there is no causal language model of this kind, or its weights cannot be loaded.
    """
    import torch

    transformers = _transformers()
    dtype: torch.dtype = getattr(torch, section.dtype)
    try:
        if section.source is not None and weights:
            model = transformers.AutoModelForCausalLM.from_pretrained(section.source, config=config)
        else:
            torch.manual_seed(section.seed)
            with _default_dtype(
                dtype
            ):  # made in this format, not converted: a fake model cannot be converted
                model = transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise BadInput(
            f"model: cannot build {section.source or config.model_type}: {_first_line(error)}",
            hint="check that it is a causal language model and that its weights are there",
        ) from error
    return model if all(p.dtype == dtype for p in model.parameters()) else model.to(dtype)


def build_to_stream(
    section: ModelSection, config: PreTrainedConfig, saved: Path | None = None
) -> tuple[PreTrainedModel, Path | None]:
    """The causal language model, and the files to stream its weights from: `job.stream(model, weights=files)`.

    What is in files is not read here: the model's parameters are on `meta`, and go straight to where the runtime keeps
    them. There are no files for random weights, nor for pretrained ones that are stored under other names or in another
    format: transformers has loaded and converted those, and the model holds them.

    Args:
        section: the job's model section.
        config: what `load_config` returned for it.
        saved: weights of this very model from an earlier attempt, instead of the section's.

    Raises:
        BadInput: as `build_model`, or `saved` is of another model.
    """
    from superpipe_cluster.streaming import check_weights, parameters_on_meta

    files = saved or _stored_weights(section)
    if files is None:
        return build_model(section, config), None
    try:
        with parameters_on_meta():
            model = build_model(section, config, weights=False)
        check_weights(model, files)
    except SpclusterError as error:
        if saved is None:  # transformers may know what to make of them, and if not, why
            return build_model(section, config), None
        raise BadInput(
            f"the checkpoint is of another model: {error.message}",
            hint="give the changed job another name and submit it anew",
        ) from error
    if section.source is not None:
        generation = _transformers().GenerationConfig
        with suppress(OSError):  # it has none of its own
            model.generation_config = generation.from_pretrained(section.source)
    return model, files


def _stored_weights(section: ModelSection) -> Path | None:
    """The safetensors file or folder of a pretrained model, fetched if it is on the hub; None if it has none."""
    if section.source is None:
        return None
    if Path(section.source).is_dir():
        return Path(section.source)
    hub = _transformers().utils.hub
    for name in ("model.safetensors", "model.safetensors.index.json"):
        with suppress(OSError):  # the model has no such file, or there is no way to it
            found = hub.cached_file(section.source, name)
            if found is not None and name.endswith(".json"):
                hub.get_checkpoint_shard_files(section.source, found)
                return Path(found).parent
            if found is not None:
                return Path(found)
    return None


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_length(config: PreTrainedConfig, length: int, field: str) -> None:
    """Refuse sequences that the model has no positions for."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and length > longest:
        raise BadInput(
            f"{field}: {length} tokens are more than the {longest} positions of the model",
            hint=f"use at most {longest}, or set max_position_embeddings in model.config",
        )


def read_tokens(data: DataSection, tokenizer: Tokenizer) -> torch.Tensor:
    """All texts of a data section as one sequence of tokens, each text ended: `int32[tokens]`.

    Raises:
        FileMissing: a file cannot be read as what it should be.
        BadInput: there is no text at all.
    """
    import torch

    end = tokenizer.eos_token_id
    tokens = [torch.tensor([*tokenizer.encode(text), end], dtype=torch.int32) for text in _texts(data)]
    if not tokens:
        raise BadInput(
            f"data.files: no text in {', '.join(data.files)}", hint="name files that are not empty"
        )
    return torch.cat(tokens)


def _texts(data: DataSection) -> Iterator[str]:
    for path in data.paths():
        is_jsonl = data.format == "jsonl" or (data.format == "auto" and path.suffix in {".jsonl", ".ndjson"})
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            if data.format == "auto" and isinstance(error, UnicodeDecodeError):
                continue  # a glob over a source tree meets a few files in other encodings
            raise FileMissing(
                f"data.files: cannot read {path}: {_first_line(error)}",
                hint="texts must be readable and UTF-8",
            ) from error
        if is_jsonl:
            yield from _json_texts(path, content.splitlines(), data.field)
        elif content.strip():
            yield content


def _json_texts(path: Path, lines: Iterable[str], field: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(
                f"{path}:{number}: not JSON: {error.msg}", hint="JSONL has one JSON object a line"
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise BadInput(f"{path}:{number}: no text in {field!r}", hint="name the text's key in data.field")
        yield row[field]


def read_prompts(prompts: str | Sequence[str]) -> list[str]:
    """The prompts of a generate section: a list as it is, a .txt file by lines, a .jsonl file by its `prompt` keys."""
    if not isinstance(prompts, str):
        return list(prompts)
    path = Path(prompts)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileMissing(
            f"generate.prompts: cannot read {path}: {_first_line(error)}",
            hint="name a UTF-8 .txt or .jsonl file",
        ) from error
    found = (
        list(_json_texts(path, lines, "prompt"))
        if path.suffix == ".jsonl"
        else [x for x in lines if x.strip()]
    )
    if not found:
        raise BadInput(f"generate.prompts: no prompt in {path}", hint="write one prompt per line")
    return found


def _has_tokenizer(source: str) -> bool:
    folder = Path(source)
    return not folder.is_dir() or any(folder.glob("tokenizer*")) or (folder / "vocab.json").exists()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise BadInput(
            "the bundled language model workers need transformers, which is not installed here",
            hint='pip install "superpipe_cluster[lm]"',
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
