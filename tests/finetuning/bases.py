"""A small base with a tokenizer of its own, and files of examples, for the tests of fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import tokenizers
import torch
import transformers

from superpipe_cluster.spec.files import expand

#: ChatML, as many models have it: nothing says where the assistant's turns are.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: The same text, its assistant turns marked.
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>\n{% endgeneration %}{% else %}"
    "{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(template: str | None = CHATML) -> Any:
    """Byte pairs of the standard library's sources."""
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE())
    pairs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    pairs.train_from_iterator(
        [path.read_text() for path in expand("python-stdlib:json/*.py")], trainer=trainer
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pairs, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=template
    )


def write_base(folder: Path, layers: int = 8, template: str | None = CHATML) -> Path:
    """A Llama with random weights, as a folder that transformers loads."""
    words = tokenizer(template)
    words.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=128, intermediate_size=256, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=128, attention_dropout=0.1,
        bos_token_id=1, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(7)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_adapter(folder: Path, base: Path, config: peft.PeftConfig | None = None, **lora: Any) -> Path:
    """A PEFT adapter with random weights, LoRA's unless `config` is another, as a folder that PEFT loads."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    usual = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    torch.manual_seed(3)
    adapted = peft.get_peft_model(
        model, config or peft.LoraConfig(task_type="CAUSAL_LM", **{**usual, **lora})
    )
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    return folder


def conversations(count: int) -> list[dict[str, Any]]:
    """Rows of chats about names in the standard library."""
    names = sorted({line for path in expand("python-stdlib:json/*.py") for line in path.read_text().split()})
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {names[7 * number]}?"},
                {"role": "assistant", "content": " ".join(names[3 * number : 3 * number + 1 + number % 5])},
            ]
        }
        for number in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
