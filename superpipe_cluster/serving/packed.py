"""One pass over a model for many sequences at once: tokens side by side, attention and cache apart.

Owns the pass. All tokens of all sequences are one row of the model's input, so weights that were streamed in serve
everybody; where sequences must not see each other, in attention, each goes its own way with its own cache. This is
transformers' own door for such a thing (`AttentionInterface`), so whatever model goes through that can be served, and
there is no padding. Who is in a pass is the engine's business.

[Note: exact passes] A sequence has, in every operator but one kind, the very shapes that it would have alone: attention
is computed apart, and norms and activations go row by row. Only matrix products would see all rows together, and sum
in another order for it: last bits differ, and once in a while a token. With `exact`, each sequence's rows are
multiplied apart from the others'. That costs calls and no link: where passes wait for weights to arrive, it is free.
A mixture's experts regroup rows, so they are run for each sequence by itself: transformers has a door for them too
(`ExpertsInterface`). Where experts do not go through it (JetMoE, LongCat), last bits depend on who is there. A DoRA
adapter multiplies its own two matrices in each pass; that product has no rows of any sequence, and is left alone.

"Alone" is the same pass with nobody else in it. That is what transformers' `generate` computes, bit for bit, but for
two cases: models that cache what keys and values are computed from (DeepSeek), which are kept computed here, and, on a
GPU, mixtures, whose experts `generate` runs in another way after the first token.

[Note: attention of its own] Some models cannot use torch's attention, for they cap the scores (Gemma 2) or have sinks
(GPT-OSS). They attend by the function in their own file, each piece with the mask that it would have alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from inspect import signature
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from superpipe_cluster.errors import BadInput

#: The names under which our attention, and our experts, are known to transformers.
_OURS = "spcluster_packed"
_WITH_OWN = "spcluster_packed_own"
#: What a model's own attention is called, in every file of transformers'.
_EAGER = "eager_attention_forward"


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
        model: a `PreTrainedModel`, streamed or not; it is used through this object only, until that is closed.
        exact: see [Note: exact passes].

    Attributes:
        makes_text: whether it has scores for a next token.
        first_place: where its positions begin; some encoders leave out the first.

    Raises:
        BadInput: the model does not go through transformers' attention interface, or keeps more than a cache. Some
            that attend in a way of their own show it in their first pass only.
    """

    def __init__(self, model: PreTrainedModel, *, exact: bool = True) -> None:
        self.makes_text = model.can_generate()
        # An encoder's window reaches to both sides, which `_seen` does not know.
        known = {"full_attention", "sliding_attention"} if self.makes_text else {"full_attention"}
        kinds = set(getattr(model.config, "layer_types", None) or ())
        if not model._supports_attention_backend or model._is_stateful or not kinds <= known:
            raise _refusal(model)
        own_attention = not model._supports_sdpa
        own_file = sys.modules[type(model).__module__]
        if own_attention and not (self.makes_text and hasattr(own_file, _EAGER)):
            raise _refusal(model)
        AttentionInterface.register(_OURS, partial(_attend, _by_torch))
        AttentionInterface.register(_WITH_OWN, partial(_attend, _by_model))
        ExpertsInterface.register(_OURS, _experts)
        self._found = model.config._attn_implementation or "eager", model.get_experts_implementation()
        experts = {name: _OURS if it == "grouped_mm" else it for name, it in self._found[1].items()}
        self._ours = _WITH_OWN if own_attention else _OURS, experts
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
        self.open()

    def open(self) -> None:
        """Have the model attend for many again, after `close`."""
        self._hook = self.model.base_model.register_forward_hook(self._keep_hidden)
        self._set(*self._ours)

    def close(self) -> None:
        """Leave the model as it was found."""
        self._hook.remove()
        self._set(*self._found)

    def _set(self, attention: str, experts: Any) -> None:
        self.model.set_attn_implementation(attention)
        self.model.set_experts_implementation(experts)

    def new_cache(self) -> DynamicCache:
        """An empty cache for one sequence."""
        return DynamicCache(config=self.model.config)

    def run(self, pieces: Sequence[Piece], device: torch.device) -> Passed:
        """Bring every sequence forward by its piece.

        Raises:
            BadInput: it attends in a way of its own, which shows only now; the model is what it was before.
        """
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
            try:
                out = self.model(
                    input_ids=torch.tensor([tokens], device=device),
                    position_ids=torch.tensor([places], device=device),
                    packed=pieces,
                    **self._no_cache,
                    **keep,
                )
            except BadInput:
                self.close()
                raise
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


def _refusal(model: Any) -> BadInput:  # of a model, or of a part that has its configuration
    return BadInput(
        f"model: {model.config.model_type} cannot answer many requests in one pass",
        hint="serve a model whose attention goes through transformers' AttentionInterface, "
        "in full or in a sliding window (Llama, Qwen, Mistral, Mixtral, GPT-2 and most others do)",
    )


def _attend(
    attention: Callable[..., torch.Tensor],
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: Sequence[Piece] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each piece to its own sequence."""
    if packed is None:  # the model has kept it to itself
        raise _refusal(module)
    lengths = [len(piece.tokens) for piece in packed]
    parts = zip(packed, *(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    out: list[torch.Tensor] = []
    for piece, q, k, v in parts:
        if piece.cache is not None:
            if piece.cache.get_seq_length(module.layer_idx) != piece.start:
                raise _refusal(
                    module
                )  # it attends twice in a layer, or goes through its layers more than once
            k, v = piece.cache.update(k, v, module.layer_idx)
        out.append(attention(module, q, k, v, **options))
    return torch.cat(out, dim=1), None


def _by_torch(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any
) -> torch.Tensor:
    """By torch's kernels, as transformers calls them."""
    queries, keys, window = query.shape[2], key.shape[2], options.get("sliding_window")
    # As transformers decides it, so that the same kernel is taken.
    is_plain = (window is None or keys < window) and queries in (1, keys)
    seen = None if is_plain else _seen(queries, keys, window, query.device)
    return sdpa_attention_forward(module, query, key, value, seen, **options)[0]


def _by_model(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any
) -> torch.Tensor:
    """By the function in the model's own file, see [Note: attention of its own]."""
    seen = _seen(query.shape[2], key.shape[2], options.get("sliding_window"), query.device)
    nothing = torch.zeros((), dtype=query.dtype, device=query.device)
    mask = torch.where(seen, nothing, torch.finfo(query.dtype).min)
    return getattr(sys.modules[type(module).__module__], _EAGER)(module, query, key, value, mask, **options)[
        0
    ]


def _seen(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which keys each query sees: `bool[1, 1, queries, keys]`."""
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


def _experts(
    module: torch.nn.Module, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """A mixture's experts over all rows, by transformers' own function; `_RowsApart` sees it as one operator."""
    if has_torch_function((hidden,)):
        return handle_torch_function(_experts, (hidden,), module, hidden, chosen, weights)
    return grouped_mm_experts_forward(module, hidden, chosen, weights)


class _RowsApart(TorchFunctionMode):
    """Multiplies the rows of each sequence by themselves, see [Note: exact passes].

    Args:
        apart: for inputs of so many rows, how many of them belong together.
    """

    #: Each matrix product that models and adapters use for weights, and which arguments hold the rows. Last, what a
    #: CPU computes in another way at a tensor's end, or in one that is not contiguous: gates with narrow rows, halves
    #: of wide ones.
    _ROWS_AT: dict[Callable[..., Any], slice] = {  # noqa: RUF012
        functional.linear: slice(0, 1),
        torch.addmm: slice(1, 2),
        torch.matmul: slice(0, 1),
        torch.Tensor.matmul: slice(0, 1),
        _experts: slice(1, 4),
        torch.Tensor.sigmoid: slice(0, 1),
        functional.gelu: slice(0, 1),
    }

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
        kwargs = kwargs or {}
        at = self._ROWS_AT.get(func)
        lengths = self._apart.get(args[at][0].shape[-2]) if at is not None and args[at][0].dim() > 1 else None
        if at is None or lengths is None or len(lengths) == 1:
            return func(*args, **kwargs)
        # A row by itself has the strides of its neighbours; as a view it has its own, by which kernels are chosen.
        split = ([part.view(part.shape) for part in rows.split(lengths, dim=-2)] for rows in args[at])
        before, after = args[: at.start], args[at.stop :]
        return torch.cat([func(*before, *own, *after, **kwargs) for own in zip(*split, strict=True)], dim=-2)
