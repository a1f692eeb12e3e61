"""Embedding texts with transformers and torch alone, as the model card of a sentence model says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers


def by_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The rows of each batch, as long as they are few: longest first."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[at : at + size] for at in range(0, len(order), size)]


def vectors(folder: Path, texts: Sequence[str], batch_size: int) -> np.ndarray:
    """The normalized means of the tokens' vectors."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    cut = {"truncation": True, "max_length": 256}
    lengths = [len(ids) for ids in tokenizer(list(texts), **cut)["input_ids"]]
    made = np.zeros((len(texts), model.config.hidden_size), np.float32)
    for rows in by_batches(lengths, batch_size):
        given = tokenizer([texts[row] for row in rows], padding=True, return_tensors="pt", **cut)
        with torch.no_grad():
            tokens = model(**given)[0]
        mask = given["attention_mask"].unsqueeze(-1).expand(tokens.size()).float()
        means = torch.sum(tokens * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)
        made[rows] = torch.nn.functional.normalize(means, p=2, dim=1).numpy()
    return made
