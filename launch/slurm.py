"""Job files for Slurm: a batch script that starts Ray on every node with srun, runs the command, and is requeued.

Shortly before the end of its time, and when it is preempted, the job gets SIGTERM: the command stops with exit code 75,
and the script puts itself back into the queue, where it goes on from the last checkpoint. With `torchrun` processes are
started by torchrun instead of Ray.
"""

from pydantic import Field, model_validator

from fmri2img.launch.jobfiles import Line, ScriptJob, Word, render


class SlurmJob(ScriptJob):
    """A Slurm job. Names are those of sbatch's options."""

    time: Word = Field(
        default="24:00:00", pattern=r"^(\d+-)?\d+(:\d+){0,2}$", description="[days-]hours:minutes:seconds"
    )
    lead: int = Field(
        default=300, ge=30, description="seconds before the end of the time at which the job stops itself"
    )
    requeues: int = Field(
        default=100, ge=0, description="how often the job may put itself back into the queue"
    )
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    memory: Word | None = Field(default=None, description="of a node, such as 64G")
    log: Word = "%x-%j.out"
    interface: Word | None = Field(
        default=None, description="network interface that nodes reach each other by"
    )
    sbatch: tuple[Line, ...] = Field(
        default=(), description="more options of sbatch, such as --reservation=NAME"
    )

    @model_validator(mode="after")
    def _options(self) -> "SlurmJob":
        for option in self.sbatch:
            if not option.startswith("--"):
                raise ValueError(f"{option} is no option of sbatch: write it as --name=value")
        return self

    def options(self) -> list[str]:
        """What stands in the script's #SBATCH lines."""
        wanted = {
            "job-name": self.name,
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": self.cpus,
            "gpus-per-node": self.gpus_per_node or None,
            "mem": self.memory,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "output": self.log,
            "open-mode": "append",
            "signal": f"B:TERM@{self.lead}",
        }
        flags = [f"--{name}={value}" for name, value in wanted.items() if value is not None]
        return [*flags, "--requeue" if self.requeues else "--no-requeue", *self.sbatch]

    def script(self) -> str:
        """The batch script."""
        return render("slurm.sh.j2", self)
