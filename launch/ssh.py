"""Job files for plain hosts: a bash script that starts Ray on each over SSH, runs the command on the first, cleans up.

Every SSH session is a lifeline: what it started ends when the session does, also when this machine or the network dies.
The token goes through its standard input, so that it stands on no command line.
"""

from pydantic import Field, model_validator

from fmri2img.launch.jobfiles import ScriptJob, Word, render


class SshJob(ScriptJob):
    """Hosts that one can log in to without a password and that see the same folders."""

    hosts: tuple[Word, ...] = Field(min_length=1, description="as ssh takes them; the first is the head")
    head_address: Word | None = Field(default=None, description="of the first host as others see it")
    port: int = Field(default=6379, ge=1024, le=65535)

    @model_validator(mode="after")
    def _one_node_a_host(self) -> "SshJob":
        twice = sorted({host for host in self.hosts if self.hosts.count(host) > 1})
        if twice:
            raise ValueError(
                f"{', '.join(twice)} stands more than once among the hosts: name every host once"
            )
        if self.nodes != len(self.hosts):
            raise ValueError(f"{self.nodes} nodes and {len(self.hosts)} hosts: there is one node a host")
        if any(host.startswith("-") for host in self.hosts):
            raise ValueError("a host's name cannot begin with -")
        return self

    def script(self) -> str:
        """The script, to be run on any machine that can log in to the hosts."""
        setup = "".join(f"{line}; " for line in self.setup)
        return render("ssh.sh.j2", self, setup=setup)
