"""Specimens from timm: of each of its model families the smallest variant, made smaller where it has settings for that.

The table was found by trying: the variant with the fewest parameters, then every common setting (depth, widths, heads)
with which it still ran and had fewer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo.torchvision_names import torchvision_can_be_imported
from zoo.trial import Specimen

torchvision_can_be_imported()
import timm  # noqa: E402

#: Family: variant, pixels of an image's side, whether the model must be told them, settings.
_FAMILIES: dict[str, tuple[str, int, bool, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", 64, True,
        {"depth": 2, "embed_dim": 48, "num_heads": 2, "mlp_ratio": 1.0}),
    "byoanet": ("eca_botnext26ts_256", 64, True, {}),
    "byobnet": ("test_byobnet", 64, True, {}),
    "cait": ("cait_xxs24_224", 64, True,
        {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 1.0, "depth_token_only": 1}),
    "coat": ("coat_tiny", 64, True, {}),
    "convit": ("convit_tiny", 64, True, {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 1.0}),
    "convmixer": ("convmixer_768_32", 64, False, {}),
    "convnext": ("test_convnext", 64, False, {}),
    "cpubone": ("cpubone_nano", 64, False, {}),
    "crossvit": ("crossvit_tiny_240", 64, False, {}),
    "csatv2": ("csatv2", 64, False, {"dims": (16, 32, 32, 64)}),
    "cspnet": ("cs3darknet_focus_s", 64, False, {}),
    "cspnext": ("cspnext_tiny", 64, False, {"channels": (16, 32, 32, 32)}),
    "davit": ("davit_tiny", 64, False, {"depths": (1, 1, 1, 1), "mlp_ratio": 1.0}),
    "deit": ("deit_tiny_patch16_224", 64, True, {"depth": 2, "embed_dim": 48, "mlp_ratio": 1.0}),
    "densenet": ("densenet264d", 64, False, {"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    "dla": ("dla46x_c", 64, False, {}),
    "dpn": ("dpn48b", 64, False, {}),
    "edgenext": ("edgenext_xx_small", 64, False, {"depths": (1, 1, 1, 1), "dims": (16, 32, 32, 64)}),
    "efficientformer": ("efficientformer_l1", 224, True,
        {"depths": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64)}),
    "efficientformer_v2": ("efficientformerv2_s0", 64, True,
        {"depths": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64)}),
    "efficientnet": ("mobilenetv2_035", 64, False, {}),
    "efficientvim": ("efficientvim_m1", 64, False,
        {"depths": (1, 1, 1), "embed_dim": (32, 32, 64), "mlp_ratio": 1.0}),
    "efficientvit_mit": ("efficientvit_b0", 64, False, {"depths": (1, 1, 1)}),
    "efficientvit_msra": ("efficientvit_m0", 64, True, {"embed_dim": (32, 32, 64)}),
    "eva": ("eva02_tiny_patch14_224", 64, True, {"depth": 2, "embed_dim": 48, "mlp_ratio": 1.0}),
    "fasternet": ("fasternet_t0", 64, False, {"depths": (1, 1, 1), "embed_dim": 32, "mlp_ratio": 1.0}),
    "fastvit": ("fastvit_t8", 64, False, {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64)}),
    "focalnet": ("focalnet_tiny_srf", 64, False, {"mlp_ratio": 1.0}),
    "gcvit": ("gcvit_xxtiny", 64, True, {"embed_dim": 32, "mlp_ratio": 1.0}),
    "gemma4_vit": ("gemma4_vit_167m", 64, True, {"depth": 2, "embed_dim": 32, "num_heads": 2}),
    "ghostnet": ("ghostnet_050", 64, False, {}),
    "hardcorenas": ("hardcorenas_b", 64, False, {}),
    "hgnet": ("hgnetv2_b0", 64, False, {"head_hidden_size": 32}),
    "hiera": ("hiera_tiny_224", 64, True, {"embed_dim": 32, "mlp_ratio": 1.0}),
    "hieradet_sam2": ("sam2_hiera_tiny", 64, False, {"embed_dim": 32}),
    "hrnet": ("hrnet_w18_small", 64, False, {}),
    "iformer": ("iformer_t", 64, False, {"dims": (16, 32, 32, 64)}),
    "inception_next": ("inception_next_atto", 64, False, {"depths": (1, 1, 1), "dims": (16, 32, 32, 64)}),
    "inception_v3": ("inception_v3", 96, False, {}),
    "inception_v4": ("inception_v4", 96, False, {}),
    "lcnetv2": ("lcnetv2_small", 64, False, {"depths": (1, 1, 1, 1), "head_hidden_size": 32}),
    "levit": ("levit_384_s8", 64, True, {"embed_dim": (32, 32, 64), "num_heads": 2, "mlp_ratio": 1.0}),
    "lowformer": ("lowformer_b0", 64, False, {}),
    "mambaout": ("test_mambaout", 64, False, {}),
    "maxxvit": ("maxvit_pico_rw_256", 64, True, {"depths": (1, 1, 1, 1), "embed_dim": (32, 64, 64, 64)}),
    "metaformer": ("poolformerv2_s12", 64, False, {}),
    "mlp_mixer": ("gmlp_ti16_224", 64, True, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 64, False, {}),
    "mobilenetv5": ("mobilenetv5_base", 64, False, {"channel_multiplier": 0.25, "num_features": 64}),
    "mobilevit": ("mobilevit_xxs", 64, True, {}),
    "mvitv2": ("mvitv2_tiny", 64, True, {}),
    "naflexvit": ("naflexvit_base_patch16_siglip", 64, True, {"depth": 2, "embed_dim": 48, "mlp_ratio": 1.0}),
    "nasnet": ("nasnetalarge", 64, False, {"num_features": 480}),
    "nest": ("nest_tiny", 64, True, {"mlp_ratio": 1.0}),
    "nextvit": ("nextvit_small", 64, False, {}),
    "nfnet": ("test_nfnet", 64, False, {}),
    "pit": ("pit_ti_224", 64, True, {"mlp_ratio": 1.0}),
    "pvt_v2": ("pvt_v2_b0", 64, False, {"depths": (1, 1, 1, 1)}),
    "qwen3_vit": ("qwen3_vit_88m", 64, True, {"depth": 2, "embed_dim": 48, "mlp_ratio": 1.0}),
    "rdnet": ("rdnet_tiny", 64, False, {}),
    "regnet": ("regnetx_002", 64, False, {}),
    "repghost": ("repghostnet_050", 64, False, {}),
    "repvit": ("repvit_m1_0", 64, True, {"embed_dim": (32, 32, 64)}),
    "res2net": ("res2net50_26w_4s", 64, False,
        {"layers": (1, 1, 1, 1), "channels": (16, 32, 32, 32), "base_width": 16}),
    "resnest": ("resnest26d", 64, False,
        {"layers": (1, 1, 1, 1), "channels": (16, 32, 32, 32), "base_width": 16}),
    "resnet": ("test_resnet", 64, False, {}),
    "resnetv2": ("resnetv2_18", 64, False, {"layers": (1, 1, 1), "channels": (16, 32, 32, 32)}),
    "rexnet": ("rexnet_100", 64, False, {"width_mult": 0.25}),
    "selecsls": ("selecsls42", 64, False, {}),
    "senet": ("legacy_seresnet18", 64, False, {"layers": (1, 1, 1, 1)}),
    "sequencer": ("sequencer2d_s", 64, True, {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64)}),
    "shvit": ("shvit_s1", 64, False, {}),
    "sknet": ("skresnet18", 64, False, {"layers": (1, 1, 1, 1), "channels": (16, 32, 32, 32)}),
    "starnet": ("starnet_s050", 64, False, {}),
    "swiftformer": ("swiftformer_xs", 64, True, {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64)}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 64, True,
        {"depths": (1, 1, 1), "embed_dim": 32, "mlp_ratio": 1.0}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", 64, True,
        {"depths": (1, 1, 1), "embed_dim": 48, "mlp_ratio": 1.0}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 64, True,
        {"depths": (1, 1, 1), "embed_dim": 48, "mlp_ratio": 1.0}),
    "tiny_vit": ("tiny_vit_5m_224", 64, False, {"depths": (1, 1, 1, 1), "mlp_ratio": 1.0}),
    "tnt": ("tnt_s_legacy_patch16_224", 64, True, {"depth": 2, "embed_dim": 48, "mlp_ratio": 1.0}),
    "tresnet": ("tresnet_m", 64, False, {"layers": (1, 1, 1, 1), "width_factor": 0.25}),
    "twins": ("twins_svt_small", 64, True, {"depths": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64)}),
    "vgg": ("vgg11", 64, False, {"mlp_ratio": 0.02}),
    "visformer": ("visformer_tiny", 64, True, {"depth": 2, "embed_dim": 32, "mlp_ratio": 1.0}),
    "vision_transformer": ("test_vit", 64, True, {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 64, True,
        {"depth": 2, "embed_dim": 48, "mlp_ratio": 1.0}),
    "vision_transformer_relpos": ("test_vit_relpos", 64, True, {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", 64, True,
        {"depth": 2, "embed_dim": 48, "mlp_ratio": 1.0}),
    "vitamin": ("vitamin_small_224", 64, True, {"depth": 2, "mlp_ratio": 1.0}),
    "volo": ("volo_d1_224", 64, True, {"mlp_ratio": 1.0}),
    "vovnet": ("ese_vovnet19b_slim_dw", 64, False, {}),
    "xception": ("legacy_xception", 64, False, {}),
    "xception_aligned": ("xception41p", 64, False, {}),
    "xcit": ("xcit_nano_12_p8_224", 64, True, {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 1.0}),
}  # fmt: skip


def names() -> list[str]:
    """Every specimen of this library."""
    return list(_FAMILIES)


def version() -> str:
    """The library's version."""
    return timm.__version__


def specimen(name: str) -> Specimen:
    """The specimen called `name`."""
    variant, pixels, told, settings = _FAMILIES[name]
    settings = {"num_classes": 10, **({"img_size": pixels} if told else {}), **settings}

    def inputs(model: nn.Module, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(2, 3, pixels, pixels, generator=generator),), {}

    return Specimen("timm", name, lambda: timm.create_model(variant, **settings), inputs)
