"""Fine-tuning with PEFT, transformers and torch alone, as `finetune_lm` is to do it: its bits are held against this."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

#: What `Plain` trains with, as a job file has it.
SETTINGS = {
    "batch_size": 1, "accumulate": 2, "sequence_length": 96, "lr": 1e-2, "seed": 5, "checkpoint_every": 2,
    "log_every": 1,
}  # fmt: skip
LORA = {"r": 4, "alpha": 8, "dropout": 0.1}

_PEFTS_OWN_NAMES = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear"}

Batch = dict[str, torch.Tensor]


class Plain:
    """The libraries' own run.

    Args:
        base: a folder with a model.
        seed: of the adapter, and of all that is drawn.
        dtype: of the base.
        size: examples of a micro-batch.
        lora: what of a new adapter is not as in `LORA`, in PEFT's names; None for no new one.
        adapter: a folder with one to train further; merged into the base where all weights are trained.
        merge: whether they are.
    """

    def __init__(
        self,
        base: Path,
        seed: int = 5,
        dtype: torch.dtype = torch.float32,
        size: int = 1,
        *,
        lora: dict[str, Any] | None = None,
        adapter: Path | None = None,
        merge: bool = False,
    ) -> None:
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        self.model.config.use_cache = False  # with one, transformers does not tell packed examples apart
        if lora is not None:
            torch.manual_seed(seed)
            self.model = peft.get_peft_model(
                self.model, peft.LoraConfig(task_type="CAUSAL_LM", **{**_PEFTS_OWN_NAMES, **lora})
            )
        elif adapter is not None:
            self.model = peft.PeftModel.from_pretrained(self.model, adapter, is_trainable=not merge)
            if merge:
                self.model = self.model.merge_and_unload().requires_grad_(True)
        self.seed = seed
        self.size = size
        self.losses: list[float] = []
        self.evaluations: list[float] = []
        self.best: dict[str, torch.Tensor] = {}

    def train(
        self,
        batch_of: Callable[[list[int]], Batch],
        count: int,
        steps: int,
        *,
        schedule: str = "linear",
        warmup: int = 0,
        held_out: list[Batch] | None = None,
        eval_every: int = 1,
        patience: int | None = None,
    ) -> None:
        model, stale = self.model.train(), 0
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0
        )
        rate = transformers.get_scheduler(schedule, optimizer, warmup, steps)
        torch.manual_seed(self.seed)
        for step in range(steps):
            epoch, place = divmod(step, math.ceil(count / (2 * self.size)))
            order = torch.randperm(count, generator=torch.Generator().manual_seed((self.seed << 32) + epoch))
            mine = order.split(self.size)[2 * place : 2 * place + 2]
            batches = [batch_of(part.tolist()) for part in mine]
            counts = [int((one["labels"] != -100).sum()) for one in batches]
            loss = 0.0
            for one, tokens in zip(batches, counts, strict=True):
                part = model(**one).loss * (tokens / sum(counts))
                part.backward()
                loss += part.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            self.losses.append(loss)
            if held_out and ((step + 1) % eval_every == 0 or step + 1 == steps):
                found = self._evaluate(held_out)
                stale = 0 if found < min(self.evaluations, default=math.inf) else stale + 1
                self.evaluations.append(found)
                if stale == 0:
                    self.best = copy.deepcopy(model.state_dict())
                if patience is not None and stale == patience:
                    break

    @torch.no_grad()
    def _evaluate(self, batches: list[Batch]) -> float:
        self.model.eval()
        counts = [int((one["labels"] != -100).sum()) for one in batches]
        losses = [self.model(**one).loss.item() * count for one, count in zip(batches, counts, strict=True)]
        self.model.train()
        return sum(losses) / sum(counts)

    def saved(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> bytes:
        """The one weights file of what transformers or PEFT saves."""
        twin = copy.deepcopy(self.model)
        if weights is not None:
            twin.load_state_dict(weights)
        twin.save_pretrained(folder)
        (file,) = folder.glob("*.safetensors")
        return file.read_bytes()


def tokenized(words: Any, rows: list[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of conversations, by transformers' own masks."""
    found = []
    for row in rows:
        one = words.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        ids, masks = one["input_ids"], one["assistant_masks"]
        found.append((ids, [token if mask else -100 for token, mask in zip(ids, masks, strict=True)]))
    return found


def collated(features: list[tuple[list[int], list[int]]], words: Any) -> Batch:
    """A padded batch, by transformers' own collator."""
    collator = transformers.DataCollatorForSeq2Seq(words, padding=True)
    return dict(collator([{"input_ids": ids, "labels": labels} for ids, labels in features]))


def flattened(examples: list[tuple[list[int], list[int]]], width: int, end: int) -> tuple[list[int], ...]:
    """Examples in a row, each with positions of its own, filled up to `width`."""
    ids = [token for one, _ in examples for token in one]
    labels = [label for _, one in examples for label in one]
    positions = [place for one, _ in examples for place in range(len(one))]
    rest = width - len(ids)
    return ids + [end] * rest, labels + [-100] * rest, positions + list(range(rest))
