"""Specimens from transformers: the base class of every model type, from its own default configuration made small.

Owns what inputs a forward is given, from its signature and the configuration. A few configurations have relations
between their fields that no rule can know; those stand in `_FIELDS`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from zoo.shrink import HEADS, IMAGE, VOCABULARY, WIDTH, shrink
from zoo.torchvision_names import torchvision_can_be_imported
from zoo.trial import Specimen

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torchvision_can_be_imported()
import transformers  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES  # noqa: E402

#: Larger ones are not tiny: the shrinking has missed something.
_MOST_PARAMETERS = 16_000_000
_ROWS, _LENGTH = 2, 16

#: Wrappers of other models; and one that with random weights speaks for minutes.
_LEFT_OUT = {"timm_backbone", "timm_wrapper", "vision-text-dual-encoder", "vits"}

_CONVOLUTIONS = {
    "use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False, "backbone_kwargs": None,
    "backbone_config": {
        "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1],
        "out_features": ["stage2", "stage3", "stage4"],
    },
}  # fmt: skip
_SERIES = {"prediction_length": 4, "context_length": 12, "lags_sequence": [1, 2, 3], "num_time_features": 1}
_ALL_HEADS = {"num_key_value_heads": 4}
_ROPE = {
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "mrope_section": [2, 1, 1],
    }
}  # fmt: skip

#: Fields by model type: what the rules cannot know.
_FIELDS: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8},
    "bamba": {"mamba_n_heads": 8},
    "granitemoehybrid": {"mamba_n_heads": 8},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": {"head_dim": 8}, "hunyuan_v1_moe": {"head_dim": 8},
    "hunyuan_vl_text": {"head_dim": 8},
    "nemotron": {"head_dim": 8},
    "dots3_note_text": _ALL_HEADS, "esmc": _ALL_HEADS, "glm5_next_text": _ALL_HEADS,
    "esm": {"vocab_size": 64, "pad_token_id": 0, "mask_token_id": 1},
    "layoutlmv3": {"visual_embed": False},
    "lilt": {"channel_shrink_ratio": 1, "hidden_size": 48, "num_attention_heads": 4},
    "deepseek_v2": {"head_dim": 8},
    "autoformer": {**_SERIES, "label_length": 4}, "informer": _SERIES, "time_series_transformer": _SERIES,
    "xmod": {"default_language": "en_XX"},
    "conditional_detr": _CONVOLUTIONS, "dab-detr": _CONVOLUTIONS, "deformable_detr": _CONVOLUTIONS,
    "detr": _CONVOLUTIONS, "table-transformer": _CONVOLUTIONS,
    "bros": {"dim_bbox_sinusoid_emb_2d": 8, "dim_bbox_sinusoid_emb_1d": 2, "dim_bbox_projection": 8},
    "efficientnet": {"hidden_dim": 640, "width_coefficient": 0.5, "depth_coefficient": 0.5},
    "speech_to_text": {"conv_channels": 16, "input_feat_per_channel": 16},
    "granite_speech5_encoder": {"context_size": 16},
    "swin": {"image_size": 64, "window_size": 2}, "donut-swin": {"image_size": 64, "window_size": 2},
    "glm4v_text": _ROPE, "glm4v_moe_text": _ROPE, "glm_image_text": _ROPE, "glm_ocr_text": _ROPE,
    "glm4v": {"text_config": _ROPE}, "glm4v_moe": {"text_config": _ROPE}, "glm_image": {"text_config": _ROPE},
    "glm46v": {"text_config": _ROPE}, "glm_ocr": {"text_config": _ROPE}, "glmga": {"text_config": _ROPE},
    "codegen": {"rotary_dim": 4}, "gptj": {"rotary_dim": 4},
    "perceiver": {"num_latents": 8, "d_latents": 32, "d_model": 32},
}  # fmt: skip


def names() -> list[str]:
    """Every model type that has a base class."""
    return [name for name in MODEL_MAPPING_NAMES if name not in _LEFT_OUT]


def version() -> str:
    """The library's version."""
    return transformers.__version__


def specimen(name: str) -> Specimen:
    """The specimen of model type `name`: the first way of shrinking and asking with which it runs."""
    errors: list[str] = []
    for how, fields in enumerate(_ways(name)):
        try:
            model = _build(name, fields).eval()
        except Exception as error:
            errors.append(f"({how}) {type(error).__name__}: {error}")
            continue
        for every, turned in ((True, False), (False, False), (True, True), (False, True)):
            try:
                args, kwargs = _inputs(model, 0, every, turned)
                with torch.no_grad():
                    model(*args, **kwargs)
            except Exception as error:
                errors.append(f"({how}, {every}, {turned}) {type(error).__name__}: {error}")
                continue
            return Specimen(
                "transformers",
                name,
                lambda fields=fields: _build(name, fields),
                lambda model, seed, every=every, turned=turned: _inputs(model, seed, every, turned),
            )
    raise RuntimeError("; ".join(line[:300] for line in dict.fromkeys(errors)))


# ---- configurations -------------------------------------------------------------------------------------


def _ways(name: str) -> Iterator[dict[str, Any]]:
    """Fields to build the configuration with: smallest first."""
    kind = CONFIG_MAPPING[name]
    base = kind()
    small = _shrunk(base)
    extra = _FIELDS.get(name, {})
    yield _merge(small, extra)
    yield _merge({**small, **{field: HEADS for field in small if "key_value_heads" in field}}, extra)
    yield _merge({field: value for field, value in small.items() if "head" not in field}, extra)
    yield _merge(_shrunk(base, width=512), extra)
    only = ("layer", "vocab", "token", "image_size", "depth", "position")
    yield _merge({f: v for f, v in small.items() if any(part in f for part in only)}, extra)


def _shrunk(config: Any, width: int = WIDTH) -> dict[str, Any]:
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    small = shrink(fields, width)
    for name, value in fields.items():
        if isinstance(value, transformers.PretrainedConfig):
            small[name] = {"model_type": value.model_type, **_shrunk(value, width)}
    return small


def _merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    merged = dict(one)
    for name, value in other.items():
        below = merged.get(name)
        merged[name] = _merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return {name: value for name, value in merged.items() if value is not ...}


def _build(name: str, fields: dict[str, Any]) -> nn.Module:
    config = CONFIG_MAPPING[name](**fields)
    for part in _configs(config):
        for switch in ("use_cache", "use_mems", "use_mems_train", "use_mems_eval"):
            if hasattr(part, switch):
                setattr(part, switch, False)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in _made(name, config).parameters())
    if size > _MOST_PARAMETERS:
        raise ValueError(f"{size} parameters are not tiny")
    return _made(name, config)


def _made(name: str, config: Any) -> nn.Module:
    kind = MODEL_MAPPING_NAMES[name]
    return getattr(transformers, kind if isinstance(kind, str) else kind[0])(config)


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if isinstance(value, transformers.PretrainedConfig):
            yield from _configs(value)


# ---- inputs ---------------------------------------------------------------------------------------------


def _inputs(model: Any, seed: int, every: bool, turned: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs by the names of the forward's parameters: those that have no default, and `every` other known one.

    With `turned`, sound has the other one of its two usual layouts.
    """
    signature = inspect.signature(model.forward).parameters
    main = model.main_input_name
    made = _Inputs(model, seed, turned)
    given: dict[str, Any] = {}
    for name, parameter in signature.items():
        required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if required or name in (main, "decoder_input_ids") or every:
            value = made.of(name)
            if value is not None:
                given[name] = value
            elif required:
                raise ValueError(f"no input is known for {name}")
    return (), given


class _Inputs:
    """One batch, seeded."""

    def __init__(self, model: Any, seed: int, turned: bool) -> None:
        self._turned = turned
        self._names = set(inspect.signature(model.forward).parameters)
        self._configs = list(_configs(model.config))
        self._generator = torch.Generator().manual_seed(seed)

    def of(self, name: str) -> Any:
        """The input called `name`, None if there is none."""
        maker = getattr(self, f"_{name}", None)
        return maker() if maker is not None else None

    def _field(self, *names: str, default: Any) -> Any:
        for name in names:
            for config in self._configs:
                value = getattr(config, name, None)
                if value is not None:
                    return value
        return default

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator)

    def _below(self, end: int, *shape: int) -> torch.Tensor:
        return torch.randint(3, max(4, end), shape, generator=self._generator)

    def _input_ids(self) -> torch.Tensor:
        # Below the numbers of special tokens, which the shrinking has put at the vocabulary's end.
        return self._below(
            min(VOCABULARY, self._field("vocab_size", default=VOCABULARY)) - 28, _ROWS, _LENGTH
        )

    def _decoder_input_ids(self) -> torch.Tensor:
        return self._below(100, _ROWS, 6)

    def _attention_mask(self) -> torch.Tensor | None:
        return None

    def _pixel_values(self) -> torch.Tensor:
        if {"grid_thw", "image_grid_thw"} & self._names:
            return self._patches()
        height, width = self._image_size()
        shape = (_ROWS, self._channels(), height, width)
        if self._field("num_frames", default=None) is not None:
            shape = (_ROWS, self._field("num_frames", default=4), *shape[1:])
        return self._random(*shape)

    def _hidden_states(self) -> torch.Tensor | None:
        return self._patches() if "grid_thw" in self._names else None

    def _patches(self) -> torch.Tensor:
        """One image of four by four patches, each a row."""
        side = self._field("patch_size", default=8)
        moments = self._field("temporal_patch_size", default=1)
        return self._random(16, self._channels() * moments * side * side)

    def _grid_thw(self) -> torch.Tensor:
        return torch.tensor([[1, 4, 4]])

    def _pixel_values_videos(self) -> torch.Tensor:
        height, width = self._image_size()
        return self._random(
            _ROWS, self._field("num_frames", "frames_per_clip", default=4), self._channels(), height, width
        )

    def _channels(self) -> int:
        return self._field("num_channels", "in_channels", "in_chans", default=3)

    def _image_size(self) -> tuple[int, int]:
        size = self._field("image_size", "img_size", default=2 * IMAGE)
        return (size, size) if isinstance(size, int) else (size[-2], size[-1])

    def _input_values(self) -> torch.Tensor:
        return self._random(_ROWS, 1, 2400) if self._turned else self._random(_ROWS, 2400)

    def _input_features(self) -> torch.Tensor:
        bins = self._field("num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels", default=16)
        frames = 2 * self._field("max_source_positions", default=32)
        return self._random(_ROWS, frames, bins) if self._turned else self._random(_ROWS, bins, frames)

    def _input_features_mask(self) -> torch.Tensor:
        return torch.ones(_ROWS, 2 * self._field("max_source_positions", default=32), dtype=torch.long)

    def _bbox(self) -> torch.Tensor:
        corners = torch.randint(0, 30, (_ROWS, _LENGTH, 2), generator=self._generator)
        return torch.cat([corners, corners + 20], -1)

    def _past_values(self) -> torch.Tensor:
        length = self._field("context_length", default=16)
        lags = max(self._field("lags_sequence", default=[0]))
        channels = self._field("num_input_channels", default=None)
        shape = (_ROWS, length + (lags if channels is None else 0))
        return self._random(*shape) if channels is None else self._random(*shape, channels)

    def _past_time_features(self) -> torch.Tensor:
        return self._random(_ROWS, 15, 1)

    def _past_observed_mask(self) -> torch.Tensor | None:
        return torch.ones(_ROWS, 15) if "past_time_features" in self._names else None

    def _future_values(self) -> torch.Tensor:
        return self._random(_ROWS, 4)

    def _future_time_features(self) -> torch.Tensor:
        return self._random(_ROWS, 4, 1)

    def _visual_feats(self) -> torch.Tensor:
        return self._random(_ROWS, 5, self._field("visual_feat_dim", default=32))

    def _visual_pos(self) -> torch.Tensor:
        return self._random(_ROWS, 5, self._field("visual_pos_dim", default=4))

    def _query_embeds(self) -> torch.Tensor:
        return self._random(_ROWS, 4, self._field("hidden_size", default=32))

    def _noise_embeds(self) -> torch.Tensor:
        return self._random(_ROWS, 4, self._field("hidden_size", default=32))

    def _inputs(self) -> torch.Tensor:
        return self._random(_ROWS, 12, self._field("d_model", default=32))

    def _pixel_attention_mask(self) -> torch.Tensor | None:
        return None if "pixel_mask" in self._names else torch.ones(_ROWS, 16, dtype=torch.long)

    def _states(self) -> torch.Tensor:
        return self._random(_ROWS, 6, self._field("state_dim", default=17))

    def _actions(self) -> torch.Tensor:
        return self._random(_ROWS, 6, self._field("act_dim", default=4))

    def _rewards(self) -> torch.Tensor:
        return self._random(_ROWS, 6, 1)

    def _returns_to_go(self) -> torch.Tensor:
        return self._random(_ROWS, 6, 1)

    def _timesteps(self) -> torch.Tensor | None:
        return torch.arange(6).expand(_ROWS, 6) if "returns_to_go" in self._names else None
