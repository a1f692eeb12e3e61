"""Training a language model with transformers and torch alone, as `train_lm` is to do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers


def trained(config: Mapping[str, Any], texts: Sequence[bytes], settings: Mapping[str, Any]) -> Any:
    """The model after a job file's `train` on windows of the texts: a byte a token, and 256 at the end of each."""
    tokens = torch.tensor([token for text in texts for token in (*text, 256)])
    length, size, parts = settings["sequence_length"], settings["batch_size"], settings["accumulate"]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"], weight_decay=0.0)
    torch.manual_seed(settings["seed"])
    for step in range(settings["steps"]):
        for micro in range(step * parts, (step + 1) * parts):
            places = torch.Generator().manual_seed((settings["seed"] << 32) + micro)
            starts = torch.randint(len(tokens) - length, (size,), generator=places).tolist()
            batch = torch.stack([tokens[start : start + length] for start in starts])
            (model(input_ids=batch, labels=batch, use_cache=False).loss / parts).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["grad_clip"])
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
