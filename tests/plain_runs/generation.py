"""Generating with transformers alone: what each prompt is continued with when it is the only one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

#: Tokens are bytes; this one ends a text, begins it and fills up.
END = 256


def random_model(config: Mapping[str, Any]) -> Any:
    """A causal language model over bytes, with random weights."""
    torch.manual_seed(0)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), END)
    return transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**{**config, "vocab_size": END + 1, **ends})
    ).eval()


def greedy(config: Mapping[str, Any], prompts: Sequence[str], new_tokens: int) -> list[str]:
    """The likeliest completions."""
    model = random_model(config)
    return [_completion(model, prompt, new_tokens) for prompt in prompts]


def _completion(model: Any, prompt: str, new_tokens: int) -> str:
    given = torch.tensor([list(prompt.encode())])
    made = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=new_tokens, do_sample=False
    )[0, given.shape[1] :].tolist()
    until = made.index(END) if END in made else len(made)
    return bytes(made[:until]).decode(errors="replace")
