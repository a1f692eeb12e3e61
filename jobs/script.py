"""What `script.yaml` runs: training a Llama of Hugging Face's in a loop of one's own, streamed.

Five lines know of the cluster; they are marked. See docs/five_lines.md.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import superpipe_cluster  # 1

options = argparse.ArgumentParser()
options.add_argument("--steps", type=int, default=200)
options.add_argument("--lr", type=float, default=3e-4)
options.add_argument("--layers", type=int, default=16)
options.add_argument("--width", type=int, default=2048)
asked = options.parse_args()

sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
text = torch.tensor(list(b"".join(source.read_bytes() for source in sources)))

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256,
    hidden_size=asked.width,
    intermediate_size=asked.width * 11 // 4,
    num_hidden_layers=asked.layers,
    num_attention_heads=asked.width // 128,
)
model = LlamaForCausalLM(config)
job = superpipe_cluster.current_job()  # 2: None outside the cluster
streamer = superpipe_cluster.stream(model, activations="recompute")  # 3
optimizer = streamer.optimizer(torch.optim.AdamW, lr=asked.lr)  # 4

for step in range(1, asked.steps + 1):
    starts = torch.randint(len(text) - 512, (4,))
    batch = torch.stack([text[start : start + 512] for start in starts]).to(streamer.device)
    loss = model(input_ids=batch, labels=batch, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if job:
        job.progress(step=step, steps=asked.steps, loss=loss.item())  # 5

streamer.close()
model.save_pretrained("model")
