"""Bytes and seconds before the run: what a job's model needs, found without its weights and without a device.

The worker program says how to build the model and run one step of it (`probe(job)` returns a `Probe`); a separate
process does that with fake tensors and reports a `Plan`. Importing this package loads no torch.
"""

from superpipe_cluster.planning.corrections import keep_correction
from superpipe_cluster.planning.forecast import Forecast, ForecastRow, Measured
from superpipe_cluster.planning.plan import Plan, PlannedDevice, Probe
from superpipe_cluster.planning.process import measure_job, plan_job

__all__ = [
    "Forecast",
    "ForecastRow",
    "Measured",
    "Plan",
    "PlannedDevice",
    "Probe",
    "keep_correction",
    "measure_job",
    "plan_job",
]
