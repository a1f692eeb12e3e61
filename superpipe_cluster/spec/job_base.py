"""What every job has, whatever its kind.

Owns the fields that all job files share. Each kind is a subclass in `kinds`, and all of them together are `job`'s. Does
not read files (`load`) and knows nothing of jobs that run (`lifecycle`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

from pydantic import Field, JsonValue

from superpipe_cluster.spec import files
from superpipe_cluster.spec.base import Complaint, StrictModel
from superpipe_cluster.spec.fields import AnyText, Array, Count, Duration, Name, Text
from superpipe_cluster.spec.queueing import AfterSection, ElasticSection, ScheduleSection
from superpipe_cluster.spec.sections import ModelSection, ResourcesSection, StreamingSection

#: Variables that the cluster sets: a job that could set them would leave its budget or its device.
_RESERVED = ("CUDA_VISIBLE_DEVICES", "SPCLUSTER_", "RAY_")


class JobBase(StrictModel):
    """What every kind of job has."""

    #: Sections that the bundled program of this kind cannot do without, each with an example for the hint.
    needed: ClassVar[Mapping[str, str]] = {}

    kind: str
    """The kind of work."""
    name: Name
    """The job's name in the queue; by default the job file's own."""
    worker: Text
    """The program that does the work: a bundled one by name, or your own by path, `./mine.py`."""
    model: ModelSection | None = None
    """Which model, and from where."""
    resources: ResourcesSection = ResourcesSection()
    """What the job may hold."""
    streaming: StreamingSection = StreamingSection()
    """How units of the model come and go on the device."""
    output: Text | None = None
    """Folder for the results; by default inside the job's own folder on the cluster."""
    elastic: ElasticSection = ElasticSection()
    """How far its budget may follow the others' needs while it runs."""
    schedule: ScheduleSection = ScheduleSection()
    """When it may run."""
    after: AfterSection = AfterSection()
    """Ids or names of the jobs to wait for; `[first, 12]`, or by how they end: `{ok: [..], any: [..], fail: [..]}`."""
    array: Array | None = None
    """Submit it once per index, `0-15%4` for 16 tasks of which four run at once; each is told its own `array_index`."""
    priority: Literal["low", "normal", "high", "interactive"] = "normal"
    """Jobs of a higher priority are started first; `interactive` is for those that somebody sits and waits for."""
    time_limit: Duration | None = None
    """The job is stopped after running this long, `8h` or `90m`; null for no limit."""
    max_attempts: Count = 3
    """How often the job is started, at most, when its worker or its machine is lost."""
    env: dict[str, AnyText] = Field(default_factory=dict[str, str])
    """Extra environment variables of the worker."""
    params: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Anything your own worker program wants to know."""

    @property
    def host(self) -> Literal["pinned", "shared", "disk"]:
        """Where its weights wait."""
        return self.resources.host

    @classmethod
    def rules(cls, given: Mapping[str, object]) -> Iterator[Complaint]:
        """Bundled workers need their sections; names of environment variables must be usable and free."""
        worker = given.get("worker", cls.model_fields["worker"].default)
        if isinstance(worker, str) and not files.is_path(worker):
            for section, example in cls.needed.items():
                if section not in given:
                    message, hint = f"missing, worker {worker} needs it", f"write {example}"
                    yield Complaint((section,), message, hint, lacks=((),))
            yield from _config_names_its_class(given.get("model"))
        env = given.get("env")
        for variable in cast("dict[str, object]", env) if isinstance(env, dict) else ():
            variable = str(variable)
            if not variable.isidentifier() or not variable.isascii():
                yield Complaint(("env", variable), "not a name for an environment variable")
            elif variable.startswith(_RESERVED):
                yield Complaint(("env", variable), "this variable belongs to the cluster", "remove it")

    @property
    def own_program(self) -> Path | None:
        """The user's own program, None when a bundled worker does the work."""
        return Path(self.worker) if files.is_path(self.worker) else None

    @property
    def prerequisites(self) -> tuple[str, ...]:
        """Ids or names of the jobs to wait for: `after`, and the one whose output is the model; each once."""
        source = self.model.source_job if self.model else None
        return tuple(dict.fromkeys((*self.after.all, *([source] if source else []))))

    @property
    def makes(self) -> ModelSection | None:
        """The model that will be in its output, as it can be built before it is there."""
        return None if self.model is None else self.model.model_copy(update={"planned_lora": None})

    @property
    def model_folders(self) -> tuple[str, ...]:
        """Where in its output that model is: in the first of these folders that is there, else in the output itself."""
        return ()

    def over(self, maker: JobBase) -> Self:
        """This job with the model that `maker` makes, as it can be planned before it is there."""
        made = maker.makes
        if self.model is None or made is None:
            return self.model_copy(update={"model": None})
        own = {"dtype": self.model.dtype, "tokenizer": self.model.tokenizer or made.tokenizer}
        return self.model_copy(update={"model": made.model_copy(update=own)})

    @property
    def steps(self) -> int | None:
        """Steps that its program takes, as it counts them in its progress; None where the job file does not tell."""
        return None

    @property
    def time_limit_s(self) -> float | None:
        """The time limit in seconds."""
        return self.time_limit

    def local_files(self) -> list[Path]:
        """The files and folders of this machine that the job names, globs expanded, each once.

        Sources of the running Python (`python-stdlib:`) are not among them: they are on every machine.

        Raises:
            FileMissing: some do not exist or cannot be read, or a glob matches nothing; the message names
            them all.
        """
        return files.local_files(self.model_dump(mode="json"))


def _config_names_its_class(model: object) -> Iterator[Complaint]:
    config = cast("dict[str, Any]", model).get("config") if isinstance(model, dict) else None
    if isinstance(config, dict) and "model_type" not in config:
        yield Complaint(("model", "config"), "lacks the model_type", "write config: {model_type: llama, ...}")
