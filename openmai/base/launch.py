"""Launch files of a command on many machines: torchrun by hand, Slurm, Kubernetes.

`torchrun` starts one process per GPU on each machine; the machines find each other at the first one (c10d rendezvous), and start again
together after a failure (`--max-restarts`): https://docs.pytorch.org/docs/stable/elastic/run.html.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

PORT = 29500


@dataclass(frozen=True)
class Launch:
    """What is to be started where."""

    name: str
    "of the job; letters, digits and dashes"
    nodes: int
    per_node: int
    "GPUs, and so processes, of each machine"
    command: tuple[str, ...]
    "what `python` would get: -m openmai train pretrain --config pretrain.yaml"
    restarts: int = 100
    "times that torchrun starts all processes again after one has died"
    hours: int = 48
    "time limit of a Slurm job"
    image: str = "REGISTRY/openmai:latest"
    "container image for Kubernetes; yours has to be named"

    def torchrun(self, rendezvous: str) -> str:
        """Return the command line of one machine."""
        options = [f"--nnodes={self.nodes}", f"--nproc-per-node={self.per_node}"]
        if self.nodes == 1:
            options.append("--standalone")
        else:
            options += [f"--rdzv-id={self.name}", "--rdzv-backend=c10d", f"--rdzv-endpoint={rendezvous}"]
        return " ".join(["torchrun", *options, f"--max-restarts={self.restarts}", *(shlex.quote(word) for word in self.command)])


def torchrun_script(launch: Launch) -> str:
    """Return a shell script for every machine; the first argument is the address of the first machine."""
    where = f'"${{1:?the address of the first machine}}:{PORT}"'
    head = "#!/bin/sh\n# Run this on each machine" + (", with the address of the first one as argument." if launch.nodes > 1 else ".")
    return f"{head}\nset -e\nexec {launch.torchrun(where if launch.nodes > 1 else '')}\n"


def slurm_script(launch: Launch) -> str:
    """Return a batch script: one task per machine, which is torchrun; Slurm queues the job again if a machine fails."""
    return f"""#!/bin/bash
#SBATCH --job-name={launch.name}
#SBATCH --nodes={launch.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={launch.per_node}
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --time={launch.hours}:00:00
#SBATCH --output=%x-%j.log
set -e
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 {launch.torchrun(f'"$first:{PORT}"')}
"""


def kubernetes_manifest(launch: Launch) -> str:
    """Return a headless service and an indexed job of one pod per machine (Kubernetes 1.29); the first pod is the meeting point."""
    host = f"{launch.name}-0.{launch.name}"
    arguments = launch.torchrun(f"{host}:{PORT}")
    return f"""apiVersion: v1
kind: Service
metadata: {{name: {launch.name}}}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {{job-name: {launch.name}}}
---
apiVersion: batch/v1
kind: Job
metadata: {{name: {launch.name}}}
spec:
  completionMode: Indexed
  completions: {launch.nodes}
  parallelism: {launch.nodes}
  backoffLimitPerIndex: {launch.restarts}
  maxFailedIndexes: {launch.nodes}
  template:
    spec:
      subdomain: {launch.name}
      restartPolicy: Never
      containers:
        - name: train
          image: {launch.image}
          command: ["/bin/sh", "-c", {_quoted(arguments)}]
          resources:
            limits: {{nvidia.com/gpu: {launch.per_node}}}
          volumeMounts:
            - {{name: shared-memory, mountPath: /dev/shm}}
            - {{name: work, mountPath: /work}}
          workingDir: /work
      volumes:
        - name: shared-memory
          emptyDir: {{medium: Memory}}
        - name: work
          persistentVolumeClaim: {{claimName: {launch.name}}}
"""


def _quoted(text: str) -> str:
    """Return a double-quoted YAML string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
