"""What all job files share: the command that is run, how many workers it gets, and how a script is written."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fmri2img.errors import InputError
from fmri2img.launch.cluster import OBJECT_STORE, WORKER

TEMPLATES = Path(__file__).with_name("templates")
COMMANDS = ("pretrain", "reconstruct")
SET_HERE = ("--cluster", "--workers", "--emulate-nodes")


def _one_line(text: str) -> str:
    if "\n" in text or "\r" in text:
        raise ValueError("must be one line")
    return text


def _one_word(text: str) -> str:
    if not text or len(text.split()) != 1 or text.split() != [text]:
        raise ValueError("must be one word")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Word = Annotated[str, AfterValidator(_one_word)]


class JobFile(BaseModel):
    """A job over `nodes` nodes: what is run, and on what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: tuple[Line, ...] = Field(
        description="words of the command, without fmri2img and without the cluster"
    )
    name: Word = "fmri2img"
    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=0, ge=0)
    workers_per_node: int = Field(default=0, ge=0, description="0: one a GPU, or one a node without GPUs")
    cpus_per_node: int = Field(default=0, ge=0, description="0: four a worker and one")
    wait_for_nodes: int = Field(default=300, ge=0, description="seconds to wait for all nodes")
    setup: tuple[Line, ...] = Field(default=(), description="shell lines that are run first on every node")

    @model_validator(mode="after")
    def _runs_on_a_cluster(self) -> Self:
        if not self.command or self.command[0] not in COMMANDS:
            given = shlex.join(self.command[:1]) or "nothing"
            raise ValueError(f"after -- stands {given}: give one of {', '.join(COMMANDS)} with its flags")
        for flag in SET_HERE:
            if any(word == flag or word.startswith(f"{flag}=") for word in self.command):
                raise ValueError(f"{flag} is set by the job file: leave it out of the command")
        if self.gpus_per_node and self.workers_on_node > self.gpus_per_node:
            raise ValueError(
                f"{self.workers_on_node} workers cannot share {self.gpus_per_node} GPUs of a node: each takes one"
            )
        return self

    @property
    def workers_on_node(self) -> int:
        """Workers of one node."""
        return self.workers_per_node or self.gpus_per_node or 1

    @property
    def workers(self) -> int:
        """Workers of the job."""
        return self.nodes * self.workers_on_node

    @property
    def cpus(self) -> int:
        """Processors of one node: the driver and Ray take one."""
        return self.cpus_per_node or 4 * self.workers_on_node + 1

    def words(self, *cluster: str) -> list[str]:
        """The whole command, where `cluster` are the words that say on which cluster."""
        waits = ["--wait-for-nodes", str(self.wait_for_nodes)] if self.command[0] == "pretrain" else []
        return ["fmri2img", *self.command, "--workers", str(self.workers), *waits, *cluster]

    def ray_words(self) -> list[str]:
        """Flags of `ray start` on every node."""
        gpus = [f"--num-gpus={self.gpus_per_node}"] if self.gpus_per_node else []
        return [
            f"--num-cpus={self.cpus}",
            *gpus,
            f'--resources={{"{WORKER}": {self.workers_on_node}}}',
            f"--object-store-memory={OBJECT_STORE}",
            "--disable-usage-stats",
        ]


class ScriptJob(JobFile):
    """A job that is a shell script, which can do without Ray."""

    torchrun: bool = Field(default=False, description="start processes with torchrun, without Ray")

    @model_validator(mode="after")
    def _torchrun_trains(self) -> Self:
        if self.torchrun and self.command[0] != "pretrain":
            raise ValueError(f"torchrun runs pretrain, not {self.command[0]}: leave --torchrun out")
        return self


def render(template: str, job: JobFile, **values: Any) -> str:
    """A script from a template; `job` and `values` are its names, and the filter `shell` quotes one word or several."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        comment_start_string="<#",  # bash has ${#list[@]}
        comment_end_string="#>",
    )
    environment.filters["shell"] = _shell
    return environment.get_template(template).render(job=job, **values)


def _shell(words: str | Sequence[str]) -> str:
    return shlex.quote(words) if isinstance(words, str) else shlex.join(words)


def write_job(path: Path, text: str, *, executable: bool) -> None:
    """Write a job file. Raises InputError when something else stands there."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, and --out is a file here: give the path of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if executable:
        path.chmod(0o755)
