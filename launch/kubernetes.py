"""Job files for Kubernetes: a KubeRay RayJob, one pod a node, with token authentication and shared memory.

Written for KubeRay 1.5.1 or newer (its `authOptions`: the operator makes the token and hands it to every pod).
"""

import shlex
from typing import Any

import yaml
from pydantic import Field, model_validator

from fmri2img.launch.cluster import OBJECT_STORE, WORKER
from fmri2img.launch.jobfiles import JobFile, Word

DATA, SHM = "data", "shm"


class KubernetesJob(JobFile):
    """A RayJob whose pods share one persistent volume claim with data, run folder and cache."""

    image: Word
    name: Word = Field(default="fmri2img", pattern=r"^[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?$")
    namespace: Word | None = None
    claim: Word = Field(description="persistent volume claim that all pods can write to (ReadWriteMany)")
    mount: Word = Field(default="/data", pattern="^/", description="where the claim is mounted")
    memory: Word = Field(default="32Gi", description="of a pod")
    shared_memory: Word = Field(default="8Gi", description="size of /dev/shm of a pod")
    gpu_resource: Word = "nvidia.com/gpu"
    ray_version: Word = Field(default="2.60.0", description="of the image")
    retries: int = Field(
        default=3, ge=0, description="how often a failed job is started again, in a fresh cluster"
    )
    wandb_secret: Word | None = Field(
        default=None, description="secret with the key api-key, for Weights & Biases"
    )
    token_secret: Word | None = Field(
        default=None, description="secret with the key auth_token; otherwise KubeRay makes one"
    )

    @model_validator(mode="after")
    def _no_setup(self) -> "KubernetesJob":
        if self.setup:
            raise ValueError("a pod is set up by its image: leave --setup out")
        return self

    def manifest(self) -> dict[str, Any]:
        """The RayJob. The head's pod trains too, so `nodes` pods are all there are."""
        auth = {"mode": "token"} | ({"secretName": self.token_secret} if self.token_secret else {})
        cluster: dict[str, Any] = {
            "rayVersion": self.ray_version,
            "authOptions": auth,
            "headGroupSpec": {
                "rayStartParams": self._start() | {"include-dashboard": "true", "dashboard-host": "0.0.0.0"},
                "template": self._pod("ray-head"),
            },
        }
        if self.nodes > 1:
            count = self.nodes - 1
            cluster["workerGroupSpecs"] = [
                {
                    "groupName": "workers",
                    "replicas": count,
                    "minReplicas": count,
                    "maxReplicas": count,
                    "rayStartParams": self._start(),
                    "template": self._pod("ray-worker"),
                }
            ]
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {"name": self.name} | ({"namespace": self.namespace} if self.namespace else {}),
            "spec": {
                "entrypoint": shlex.join(self.words("--cluster", "auto")),
                "submissionMode": "K8sJobMode",
                "backoffLimit": self.retries,
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": 600,
                "rayClusterSpec": cluster,
            },
        }

    def text(self) -> str:
        """The manifest as YAML."""
        return (
            "# Written by `fmri2img launch kubernetes`, for KubeRay 1.5.1 or newer: kubectl apply -f THIS-FILE\n"
            + yaml.safe_dump(self.manifest(), sort_keys=False)
        )

    def _start(self) -> dict[str, str]:
        """Flags of `ray start`. Everything is a string here, and the resources a quoted one."""
        return {
            "num-cpus": str(self.cpus),
            **({"num-gpus": str(self.gpus_per_node)} if self.gpus_per_node else {}),
            "resources": f"'{{\"{WORKER}\": {self.workers_on_node}}}'",
            "object-store-memory": str(OBJECT_STORE),
        }

    def _pod(self, container: str) -> dict[str, Any]:
        amounts: dict[str, Any] = {"cpu": str(self.cpus), "memory": self.memory}
        if self.gpus_per_node:
            amounts[self.gpu_resource] = self.gpus_per_node
        env: list[dict[str, Any]] = [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]
        if self.wandb_secret:
            reference = {"name": self.wandb_secret, "key": "api-key"}
            env.append({"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": reference}})
        return {
            "spec": {
                "containers": [
                    {
                        "name": container,
                        "image": self.image,
                        "env": env,
                        "resources": {"requests": amounts, "limits": dict(amounts)},
                        "volumeMounts": [
                            {"name": DATA, "mountPath": self.mount},
                            {"name": SHM, "mountPath": "/dev/shm"},
                        ],
                    }
                ],
                "volumes": [
                    {"name": DATA, "persistentVolumeClaim": {"claimName": self.claim}},
                    {"name": SHM, "emptyDir": {"medium": "Memory", "sizeLimit": self.shared_memory}},
                ],
            }
        }
