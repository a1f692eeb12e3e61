"""The job file: strict types, units, YAML with line numbers, JSON schema.

Owns what a job may say and how mistakes in it are shown. Knows nothing of jobs that run, of the cluster or of
HTTP.
"""

from __future__ import annotations

from superpipe_cluster.spec import files, units
from superpipe_cluster.spec.arrays import ArrayRange
from superpipe_cluster.spec.fields import Memory
from superpipe_cluster.spec.job import JobSpec
from superpipe_cluster.spec.job_base import JobBase
from superpipe_cluster.spec.kinds.embed import EmbedJob, EmbedSection
from superpipe_cluster.spec.kinds.finetune import ExamplesSection, FinetuneJob, FinetuneSection
from superpipe_cluster.spec.kinds.generate import GenerateJob, GenerateSection
from superpipe_cluster.spec.kinds.paint import PaintJob, PaintSection
from superpipe_cluster.spec.kinds.script import ScriptJob
from superpipe_cluster.spec.kinds.serve import ServeJob, ServeSection
from superpipe_cluster.spec.kinds.train import TrainJob, TrainSection
from superpipe_cluster.spec.kinds.vision import ImagesSection, VisionJob, VisionTrainSection
from superpipe_cluster.spec.load import load
from superpipe_cluster.spec.parse import dump, parse, parse_stored
from superpipe_cluster.spec.queueing import AfterSection, ElasticSection, ScheduleSection
from superpipe_cluster.spec.schema import schema
from superpipe_cluster.spec.sections import (
    DataSection,
    LoraSection,
    ModelSection,
    ResourcesSection,
    StreamingSection,
)
from superpipe_cluster.spec.units import ByteRange

__all__ = [
    "AfterSection",
    "ArrayRange",
    "ByteRange",
    "DataSection",
    "ElasticSection",
    "EmbedJob",
    "EmbedSection",
    "ExamplesSection",
    "FinetuneJob",
    "FinetuneSection",
    "GenerateJob",
    "GenerateSection",
    "ImagesSection",
    "JobBase",
    "JobSpec",
    "LoraSection",
    "Memory",
    "ModelSection",
    "PaintJob",
    "PaintSection",
    "ResourcesSection",
    "ScheduleSection",
    "ScriptJob",
    "ServeJob",
    "ServeSection",
    "StreamingSection",
    "TrainJob",
    "TrainSection",
    "VisionJob",
    "VisionTrainSection",
    "dump",
    "files",
    "load",
    "parse",
    "parse_stored",
    "schema",
    "units",
]
