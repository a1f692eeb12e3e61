"""What `script_tiny.yaml` runs: a training script of one's own that streams its model and goes on where it was stopped.

It runs by hand as well, `python script_tiny.py`; outside the cluster, `current_job()` is None.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

import superpipe_cluster

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 100
CONTEXT, WIDTH, DEPTH, BATCH = 16, 256, 8, 64

job = superpipe_cluster.current_job()
torch.manual_seed(0)
text = torch.tensor(list(Path(json.__file__).read_bytes()))  # the module's own source
windows = text.unfold(0, CONTEXT + 1, 1)
model = nn.Sequential(
    nn.Embedding(256, WIDTH // CONTEXT),
    nn.Flatten(),
    *(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(DEPTH)),
    nn.Linear(WIDTH, 256),
)
streamer = superpipe_cluster.stream(model)
optimizer = streamer.optimizer(torch.optim.AdamW, lr=1e-3)
done = 0

checkpoint = job.latest_checkpoint() if job else None
if checkpoint:
    state = torch.load(checkpoint / "state.pt")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    done = state["step"]
    print(f"goes on behind step {done}")


def save(folder: Path) -> None:
    """Everything that the next step depends on."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
    torch.save(state, folder / "state.pt")


while done < STEPS and not (job and job.should_stop):
    torch.manual_seed(done)  # a step's batch depends on its number alone
    batch = windows[torch.randint(len(windows), (BATCH,))].to(streamer.device)
    loss = nn.functional.cross_entropy(model(batch[:, :-1]), batch[:, -1])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    done += 1
    if done % 10 == 0:
        print(f"step {done}/{STEPS}  loss {loss.item():.3f}")
    if job:
        job.progress(step=done, steps=STEPS, loss=loss.item())
        if done % 10 == 0:
            job.save(done, save)

streamer.close()  # the model is a plain one again, in host memory
if done == STEPS:
    torch.save(model.state_dict(), "model.pt")
