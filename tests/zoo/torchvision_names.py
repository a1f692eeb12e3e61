"""Lets `torchvision` be imported where its build does not belong to torch's.

timm, diffusers and transformers import it for image transforms that no specimen needs. A build for another device has
no operators here, and its import fails for the lack of their names.
"""

from __future__ import annotations

import sys

import torch

_kept: list[torch.library.Library] = []


def torchvision_can_be_imported() -> None:
    """Define the names that its import looks for, if it does not bring them."""
    if "torchvision" in sys.modules or _kept:
        return
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
