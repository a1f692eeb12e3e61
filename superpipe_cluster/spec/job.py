"""The job file as a type: all kinds of work together.

Owns the list of kinds. A new one is a file in `kinds` with a subclass of `JobBase`, joined to `JobSpec` here;
everything else (errors, schema, loading) finds it there.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from superpipe_cluster.spec.job_base import JobBase
from superpipe_cluster.spec.kinds.embed import EmbedJob
from superpipe_cluster.spec.kinds.finetune import FinetuneJob
from superpipe_cluster.spec.kinds.generate import GenerateJob
from superpipe_cluster.spec.kinds.paint import PaintJob
from superpipe_cluster.spec.kinds.script import ScriptJob
from superpipe_cluster.spec.kinds.serve import ServeJob
from superpipe_cluster.spec.kinds.train import TrainJob
from superpipe_cluster.spec.kinds.vision import VisionJob

JobSpec = Annotated[
    TrainJob | FinetuneJob | GenerateJob | ScriptJob | PaintJob | ServeJob | EmbedJob | VisionJob,
    Field(discriminator="kind"),
]

#: The class of each kind, read off the union.
KINDS: dict[str, type[JobBase]] = {
    get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in get_args(get_args(JobSpec)[0])
}
