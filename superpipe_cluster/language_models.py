"""Language models as a job file names them: the model, its tokenizer, its texts.

Owns loading, with errors that name the field to mend; Hugging Face's libraries do the work. What is done with the model
is the worker program's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from superpipe_cluster import pretrained
from superpipe_cluster.errors import BadInput, FileMissing, first_line
from superpipe_cluster.pretrained import transformers
from superpipe_cluster.spec import DataSection, ModelSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


class Tokenizer(Protocol):
    """What the workers need of a tokenizer."""

    eos_token_id: int
    pretrained: Any
    """What transformers loaded; None for bytes."""

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
    pretrained: Any = None

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
        self.pretrained: Any = tokenizer
        self.eos_token_id: int = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0

    def __len__(self) -> int:
        return len(self.pretrained)

    def encode(self, text: str) -> list[int]:
        return self.pretrained.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self.pretrained.decode(ids, skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        self.pretrained.save_pretrained(folder)


def load_tokenizer(section: ModelSection) -> Tokenizer:
    """The tokenizer of a model section: the named one, else the source's own, for an adapter its base's, else bytes.

    Raises:
        BadInput: it cannot be loaded.
    """
    named = section.tokenizer or pretrained.tokenizer_source(section)
    if named is None or named == "bytes":
        return ByteTokenizer()
    library = transformers()
    try:
        return _PretrainedTokenizer(library.AutoTokenizer.from_pretrained(named))
    except Exception as error:
        raise BadInput(
            f"model.tokenizer: cannot load {named}: {first_line(error)}",
            hint="name a folder or a hub model that has a tokenizer, or write `tokenizer: bytes`",
        ) from error


def load_config(section: ModelSection, tokenizer: Tokenizer) -> PreTrainedConfig:
    """The model's configuration, checked against its tokenizer.

    Raises:
        BadInput: no such model class, or a vocabulary that is too small.
    """
    # The class's own ids belong to its own vocabulary, not to this one.
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    config = pretrained.load_config(section, vocab_size=len(tokenizer), **ids)
    if getattr(config, "vocab_size", len(tokenizer)) < len(tokenizer):
        raise BadInput(
            f"model.config.vocab_size: {config.vocab_size} is less than the {len(tokenizer)} tokens of the tokenizer",
            hint=f"use vocab_size: {len(tokenizer)} or more, or another tokenizer",
        )
    return config


def build_model(section: ModelSection, config: PreTrainedConfig, *, weights: bool = True) -> PreTrainedModel:
    """The causal language model, as `pretrained.build_model` builds it."""
    return pretrained.build_model(section, config, "AutoModelForCausalLM", weights=weights)


def build_to_stream(
    section: ModelSection, config: PreTrainedConfig, saved: Path | None = None
) -> tuple[PreTrainedModel, Path | None]:
    """The causal language model and the files to stream it from, as `pretrained.build_to_stream` builds them."""
    return pretrained.build_to_stream(section, config, "AutoModelForCausalLM", saved)


def build_frozen(
    section: ModelSection, config: PreTrainedConfig, *, weights: bool = True
) -> tuple[PreTrainedModel, Any]:
    """The causal language model to use, and what to stream it from, as `pretrained.build_frozen` builds them."""
    return pretrained.build_frozen(section, config, "AutoModelForCausalLM", weights=weights)


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
                f"data.files: cannot read {path}: {first_line(error)}",
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


def read_prompts(prompts: str | Sequence[str], field: str = "generate.prompts") -> list[str]:
    """The prompts of a job: a list as it is, a .txt file by lines, a .jsonl file by its `prompt` keys."""
    if not isinstance(prompts, str):
        return list(prompts)
    path = Path(prompts)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileMissing(
            f"{field}: cannot read {path}: {first_line(error)}",
            hint="name a UTF-8 .txt or .jsonl file",
        ) from error
    found = (
        list(_json_texts(path, lines, "prompt"))
        if path.suffix == ".jsonl"
        else [x for x in lines if x.strip()]
    )
    if not found:
        raise BadInput(f"{field}: no prompt in {path}", hint="write one prompt per line")
    return found
