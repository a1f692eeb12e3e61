"""Bytes before the run: what a job's model needs, found without its weights and without a device.

The worker program says how to build the model and run one step of it (`probe(job)` returns a `Probe`); a separate
process does that with fake tensors and reports a `Plan`. Importing this package loads no torch.
"""

from superpipe_cluster.planning.plan import Plan, Probe
from superpipe_cluster.planning.process import plan_job

__all__ = ["Plan", "Probe", "plan_job"]
