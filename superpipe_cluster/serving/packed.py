"""One pass over a model for many sequences at once: tokens side by side, attention and cache apart.

Owns the pass. All tokens of all sequences are one row of the model's input, so weights that were streamed in serve
everybody; where sequences must not see each other, in attention, each goes its own way with its own cache. This is
transformers' own door for such a thing (`AttentionInterface`), so whatever model goes through that can be served, and
there is no padding. Who is in a pass is the engine's business.

[Note: exact passes] A sequence has, in every operator but one kind, the very shapes that it would have alone: attention
is computed apart, and norms and activations go row by row. Only matrix products would see all rows together, and sum
in another order for it: last bits differ, and once in a while a token. With `exact`, each sequence's rows are
multiplied apart from the others'. That costs calls and no link: where passes wait for weights to arrive, it is free.
Models that regroup their rows (mixtures of experts) have no such exactness: their experts see whoever is there. A DoRA
adapter multiplies its own two matrices in each pass; that product has no rows of any sequence, and is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from superpipe_cluster.errors import BadInput

#: The name under which our attention is known to transformers.
_ATTENTION = "spcluster_packed"


@dataclass(slots=True)
class Piece:
    """What one sequence brings to a pass.

    Attributes:
        tokens: those that the model has not seen yet.
        start: the place of the first of them in the sequence.
        cache: of the tokens before them, and from now on of these too; None to keep nothing.
        vector: whether the mean of the last hidden states is wanted, and not scores of the next token.
    """

    tokens: Sequence[int]
    start: int = 0
    cache: DynamicCache | None = None
    vector: bool = False


@dataclass(slots=True)
class Passed:
    """What a pass brought.

    Attributes:
        scores: a row for each piece that wanted the next token, in their order: `[pieces, vocabulary]`.
        vectors: for each piece that wanted one: `float32[pieces, hidden]`, of length one.
        hidden: for each of these, its last hidden states: `[1, tokens, hidden]`.
    """

    scores: torch.Tensor
    vectors: torch.Tensor | None
    hidden: tuple[torch.Tensor, ...] = ()


class Packed:
    """A model that answers many sequences in one pass: a causal language model, or one that makes vectors only.

    Args:
        model: a `PreTrainedModel`, streamed or not; from now on it is used through this object only.
        exact: see [Note: exact passes].

    Attributes:
        makes_text: whether it has scores for a next token.
        first_place: where its positions begin; some encoders leave out the first.

    Raises:
        BadInput: the model does not go through transformers' attention interface, or keeps more than a cache.
    """

    def __init__(self, model: PreTrainedModel, *, exact: bool = True) -> None:
        self.makes_text = model.can_generate()
        # An encoder's window reaches to both sides, which `_seen` does not know.
        known = {"full_attention", "sliding_attention"} if self.makes_text else {"full_attention"}
        kinds = set(getattr(model.config, "layer_types", None) or ())
        capped = getattr(model.config, "attn_logit_softcapping", None) is not None
        if not model._supports_attention_backend or capped or not kinds <= known:
            raise BadInput(
                f"model: {model.config.model_type} cannot answer many requests in one pass",
                hint="serve a model whose attention goes through transformers' AttentionInterface, "
                "in full or in a sliding window (Llama, Qwen, Mistral, GPT-2 and most others do)",
            )
        AttentionInterface.register(_ATTENTION, _attend)
        self._attention: Any = model.config._attn_implementation
        model.set_attn_implementation(_ATTENTION)
        self.model = model
        self._exact = exact
        embeddings = getattr(model, "embeddings", None)
        skips = hasattr(embeddings, "create_position_ids_from_input_ids")
        self.first_place: int = embeddings.padding_idx + 1 if skips and embeddings is not None else 0
        dora: Any
        for dora in model.modules():
            if hasattr(dora, "get_lora_weight"):
                dora.get_lora_weight = _left_alone(dora.get_lora_weight)
        takes = signature(model.forward).parameters
        self._last_only = "logits_to_keep" in takes
        # The model's own cache is not used; each piece has its own.
        self._no_cache = {"use_cache": False} if "use_cache" in takes else {}
        self._hidden: torch.Tensor | None = None
        self._hook = model.base_model.register_forward_hook(self._keep_hidden)

    def close(self) -> None:
        """Leave the model as it was found."""
        self._hook.remove()
        self.model.set_attn_implementation(self._attention)

    def new_cache(self) -> DynamicCache:
        """An empty cache for one sequence."""
        return DynamicCache(config=self.model.config)

    def run(self, pieces: Sequence[Piece], device: torch.device) -> Passed:
        """Bring every sequence forward by its piece."""
        lengths = [len(piece.tokens) for piece in pieces]
        ends = torch.tensor(lengths).cumsum(0)
        asked = [number for number, piece in enumerate(pieces) if not piece.vector]
        last = (ends[asked] - 1 if asked else ends[-1:] - 1).to(device)
        tokens = [token for piece in pieces for token in piece.tokens]
        starts = [self.first_place + piece.start for piece in pieces]
        places = [start + n for start, length in zip(starts, lengths, strict=True) for n in range(length)]
        keep = {"logits_to_keep": last} if self._last_only else {}
        apart = {len(last): [1] * len(last), len(tokens): lengths}
        with torch.no_grad(), _RowsApart(apart) if self._exact else nullcontext():
            out = self.model(
                input_ids=torch.tensor([tokens], device=device),
                position_ids=torch.tensor([places], device=device),
                packed=pieces,
                **self._no_cache,
                **keep,
            )
            hidden, self._hidden = self._hidden, None
            if not self.makes_text:
                scores = out.last_hidden_state[0, :0]
            else:
                scores = out.logits[0] if self._last_only else out.logits[0, last]
            wanted = [number for number, piece in enumerate(pieces) if piece.vector]
            vectors, states = None, ()
            if wanted and hidden is not None:
                states = tuple(hidden.split(lengths, dim=1)[number] for number in wanted)
                vectors = _means(states)
        return Passed(scores[: len(asked)], vectors, states)

    def _keep_hidden(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._hidden = output[0]


def bytes_of(cache: DynamicCache) -> int:
    """Device bytes of its keys and values."""
    kept = (getattr(layer, part) for layer in cache.layers for part in ("keys", "values"))
    return sum(tensor.nbytes for tensor in kept if tensor is not None)


def _means(states: Sequence[torch.Tensor]) -> torch.Tensor:
    return functional.normalize(torch.stack([one[0].float().mean(0) for one in states]), dim=-1)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: Sequence[Piece],
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each piece to its own sequence, by transformers' own function."""
    lengths = [len(piece.tokens) for piece in packed]
    parts = zip(packed, *(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    out: list[torch.Tensor] = []
    for piece, q, k, v in parts:
        if piece.cache is not None:
            k, v = piece.cache.update(k, v, module.layer_idx)
        seen = _seen(q.shape[2], k.shape[2], options.get("sliding_window"), q.device)
        out.append(sdpa_attention_forward(module, q, k, v, seen, **options)[0])
    return torch.cat(out, dim=1), None


def _seen(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which keys each query sees: `bool[1, 1, queries, keys]`, None for all up to its own."""
    if (window is None or keys < window) and queries in (1, keys):
        return None  # as transformers decides it, so that the same kernel is taken
    own = torch.arange(keys - queries, keys, device=device)[:, None]
    others = torch.arange(keys, device=device)[None, :]
    seen = others <= own
    if window is not None:
        seen &= others > own - window
    return seen[None, None]


def _left_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` outside of any mode."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return call


class _RowsApart(TorchFunctionMode):
    """Multiplies the rows of each sequence by themselves, see [Note: exact passes].

    Args:
        apart: for inputs of so many rows, how many of them belong together.
    """

    #: Each matrix product that models and adapters use for weights, and which argument holds the rows.
    _ROWS_AT: dict[Callable[..., Any], int] = {  # noqa: RUF012
        functional.linear: 0, torch.addmm: 1, torch.matmul: 0, torch.Tensor.matmul: 0,
    }  # fmt: skip

    def __init__(self, apart: dict[int, list[int]]) -> None:
        super().__init__()
        self._apart = apart

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        at = self._ROWS_AT.get(func)
        lengths = self._apart.get(args[at].shape[-2]) if at is not None and args[at].dim() > 1 else None
        if at is None or lengths is None or len(lengths) == 1:
            return func(*args, **(kwargs or {}))
        parts = args[at].split(lengths, dim=-2)
        return torch.cat(
            [func(*args[:at], part, *args[at + 1 :], **(kwargs or {})) for part in parts], dim=-2
        )
