"""What a sentence-transformers folder says beside the model itself.

Owns the reading of its files, local or on the hub. What is done with it is `encoder`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from superpipe_cluster.errors import BadInput, first_line
from superpipe_cluster.pretrained import find_file

#: sentence-transformers' older way to name the poolings, in the order in which their vectors are joined.
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLINGS = ("cls", "max", "mean", "lasttoken")


@dataclass(frozen=True)
class Recipe:
    """What a sentence-transformers folder says beside the model; the defaults are those of a model that says nothing.

    Attributes:
        source: the model that it is of, local or on the hub.
        folder: of the model in the folder; empty where it is the folder itself.
        pooling: how a vector is made of those of the tokens; several are joined.
        dense: folders of layers after the pooling.
        normalize: whether vectors have length 1.
        max_length: tokens of a text at most, None for the model's limit.
        lower_case: whether texts are lowercased.
        prompts: texts to put before a text, by name.
        default_prompt: the name of the one to take.
    """

    source: str = ""
    folder: str = ""
    pooling: tuple[str, ...] | None = None
    dense: tuple[str, ...] = ()
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    default_prompt: str | None = None

    @classmethod
    def read(cls, source: str | None) -> Recipe | None:
        """The recipe of a model, local or on the hub; None if it has none.

        Raises:
            BadInput: it has a part that cannot be followed here.
        """
        modules = None if source is None else read_json(source, "modules.json")
        if source is None or modules is None:
            return None
        first, *others = modules
        folder = first["path"]
        pooling: tuple[str, ...] | None = None
        dense: list[str] = []
        normalize = False
        for module in others:
            kind = module["type"].rpartition(".")[2]
            if kind == "Pooling":
                pooling = _poolings(source, read_json(source, f"{module['path']}/config.json") or {})
            elif kind == "Dense" and not normalize:
                dense.append(module["path"])
            elif kind == "Normalize":
                normalize = True
            else:
                raise BadInput(
                    f"model.source: {source} has a {kind} in its modules.json, which is not supported",
                    hint="supported are Transformer, CLIPModel, Pooling, Dense and Normalize, in this order",
                )
        said = read_json(source, f"{folder}/sentence_bert_config.json".lstrip("/")) or {}
        whole = read_json(source, "config_sentence_transformers.json") or {}
        return cls(
            source=source,
            folder=folder,
            pooling=pooling,
            dense=tuple(dense),
            normalize=normalize,
            max_length=said.get("max_seq_length"),
            lower_case=bool(said.get("do_lower_case")),
            prompts=whole.get("prompts") or {},
            default_prompt=whole.get("default_prompt_name"),
        )


def _poolings(source: str, said: Mapping[str, Any]) -> tuple[str, ...]:
    modes = said.get("pooling_mode")
    if modes is None:
        wanted = [key for key, on in said.items() if key.startswith("pooling_mode_") and on]
        modes = [name for key, name in _OLD_POOLINGS.items() if key in wanted] + [
            key for key in wanted if key not in _OLD_POOLINGS
        ]
    chosen = (modes,) if isinstance(modes, str) else tuple(modes) or ("mean",)
    for mode in chosen:
        if mode not in _POOLINGS:
            raise BadInput(
                f"model.source: {source} pools with {mode}, which is not supported",
                hint=f"choose one of {', '.join(_POOLINGS)} in embed.pooling",
            )
    return chosen


def read_json(source: str, name: str) -> Any:
    """A JSON file of a model; None if it has none of this name."""
    found = find_file(source, name)
    try:
        return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"model.source: {name} of {source} cannot be read: {first_line(error)}",
            hint="download the model again",
        ) from error


def inside(source: str, folder: str) -> str:
    """The local path of a folder of a model, fetched if it is on the hub."""
    if not Path(source).is_dir():
        import huggingface_hub

        source = huggingface_hub.snapshot_download(source, allow_patterns=f"{folder}/*")
    return str(Path(source) / folder)
