"""`fmri2img launch`: job files that run a command on a cluster, to be read and handed to its scheduler."""

import contextlib
import io
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, UseAppendAction, subcommand

from fmri2img.console import output
from fmri2img.errors import InputError

Words = Positional[tuple[str, ...]]


@dataclass(frozen=True)
class Shared:
    """What every job file is told."""

    out: Path
    """the file to write"""
    name: str = "fmri2img"
    """the job's name"""
    nodes: int = 1
    """nodes of the job"""
    gpus_per_node: int = 0
    """GPUs of a node, one worker each"""
    workers_per_node: int = 0
    """workers of a node; one a GPU otherwise, or one a node without GPUs"""
    cpus_per_node: int = 0
    """processors of a node; four a worker and one otherwise"""
    wait_for_nodes: int = 300
    """seconds to wait for nodes that have not joined yet or were lost"""
    setup: UseAppendAction[tuple[str, ...]] = ()
    """a shell line that every node runs first, such as "module load cuda"; may be given several times"""


@dataclass(frozen=True)
class LaunchSlurm:
    """A batch script for Slurm: Ray on every node, stopped before the end of its time, requeued, gone on with."""

    command: Words
    """after --: the command to run, such as pretrain --data D --out RUN"""
    flags: OmitArgPrefixes[Shared]
    time: str = "24:00:00"
    """the job's time, [days-]hours:minutes:seconds"""
    lead: int = 300
    """seconds before the end of the time at which the job stops itself"""
    requeues: int = 100
    """how often it may put itself back into the queue"""
    partition: str | None = None
    """partition"""
    account: str | None = None
    """account"""
    qos: str | None = None
    """quality of service"""
    constraint: str | None = None
    """features that nodes must have"""
    memory: str | None = None
    """memory of a node, such as 64G"""
    interface: str | None = None
    """network interface that nodes reach each other by"""
    sbatch: UseAppendAction[tuple[str, ...]] = ()
    """one more option of sbatch, such as --sbatch=--reservation=NAME; may be given several times"""
    torchrun: bool = False
    """start processes with torchrun, without Ray"""

    def run(self) -> None:
        from fmri2img.launch.slurm import SlurmJob

        job = made(SlurmJob, **given(self))
        write(self.flags.out, job, job.script(), executable=True, then=f"sbatch {self.flags.out}")


@dataclass(frozen=True)
class LaunchKubernetes:
    """A RayJob for the KubeRay operator: one pod a node, all with one shared volume."""

    command: Words
    """after --: the command to run, such as pretrain --data /data/D --out /data/RUN"""
    flags: OmitArgPrefixes[Shared]
    image: str
    """container image, made with docker/Dockerfile.cuda or docker/Dockerfile.cpu"""
    claim: str
    """persistent volume claim that all pods can write to"""
    mount: str = "/data"
    """where pods see it"""
    namespace: str | None = None
    """namespace"""
    memory: str = "32Gi"
    """memory of a pod"""
    shared_memory: str = "8Gi"
    """size of /dev/shm of a pod"""
    ray_version: str = "2.60.0"
    """Ray's version in the image"""
    retries: int = 3
    """how often a failed job is started again"""
    wandb_secret: str | None = None
    """secret with the key api-key, for Weights & Biases"""
    token_secret: str | None = None
    """secret with the key auth_token; KubeRay makes one otherwise"""

    def run(self) -> None:
        from fmri2img.launch.kubernetes import KubernetesJob

        job = made(KubernetesJob, **given(self))
        write(self.flags.out, job, job.text(), executable=False, then=f"kubectl apply -f {self.flags.out}")


@dataclass(frozen=True)
class LaunchSsh:
    """A script for plain hosts: Ray on each over SSH, the command on the first, everything ended with the script."""

    command: Words
    """after --: the command to run, such as pretrain --data D --out RUN"""
    flags: OmitArgPrefixes[Shared]
    hosts: tuple[str, ...]
    """hosts as ssh takes them; the first is the head"""
    head_address: str | None = None
    """address of the first host as others see it; the one that SSH reached it by otherwise"""
    port: int = 6379
    """port of Ray's head"""
    torchrun: bool = False
    """start processes with torchrun, without Ray"""

    def run(self) -> None:
        from fmri2img.launch.ssh import SshJob

        if self.flags.nodes not in (1, len(self.hosts)):
            raise InputError(f"--nodes {self.flags.nodes}: there is one node a host, leave it out")
        job = made(SshJob, **given(self) | {"nodes": len(self.hosts)})
        write(self.flags.out, job, job.script(), executable=True, then=f"bash {self.flags.out}")


LaunchAction = (
    Annotated[LaunchSlurm, subcommand("slurm")]
    | Annotated[LaunchKubernetes, subcommand("kubernetes")]
    | Annotated[LaunchSsh, subcommand("ssh")]
)


@dataclass(frozen=True)
class Launch:
    """Write a job file that runs pretrain or reconstruct on a cluster: Slurm, Kubernetes, or hosts over SSH."""

    action: OmitSubcommandPrefixes[OmitArgPrefixes[LaunchAction]]

    def run(self) -> None:
        self.action.run()


def given(flags: LaunchSlurm | LaunchKubernetes | LaunchSsh) -> dict[str, Any]:
    """The fields of a job, each from the flag of its name."""
    told = {field.name: getattr(part, field.name) for part in (flags.flags, flags) for field in fields(part)}
    del told["flags"], told["out"]
    return told


def made(kind: Any, **values: Any) -> Any:
    """The job; InputError with the first rule that it breaks."""
    from pydantic import ValidationError

    try:
        job = kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        rule = first["msg"].removeprefix("Value error, ")
        where = str(first["loc"][0]).replace("_", "-") if first["loc"] else ""
        raise InputError(f"--{where} {first['input']}: {rule}" if where else rule) from error
    check(job.words("--cluster", "auto")[1:])
    return job


def check(words: list[str]) -> None:
    """Raise InputError when the job would run a command that does not exist or lacks a flag."""
    from fmri2img.commands import Command

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            tyro.cli(Command, prog="fmri2img", args=words)
    except SystemExit as stop:
        raise InputError(
            f"after -- stands no command that could run: `fmri2img {shlex.join(words)}` says what is wrong"
        ) from stop


def write(path: Path, job: Any, text: str, *, executable: bool, then: str) -> None:
    """Write the file and say what is next."""
    from fmri2img.launch.jobfiles import write_job

    write_job(path, text, executable=executable)
    output().print(f"{job.workers} workers on {job.nodes} nodes; next: {then}", markup=False)
