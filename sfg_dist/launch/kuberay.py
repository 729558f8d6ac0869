"""Kubernetes: each job becomes a RayJob, and a ConfigMap that holds its file.

An attempt may overlap with the one before it, since KubeRay makes a new cluster while pods of the old one still end.
Both may label: shards are committed by create-if-absent with the same bytes. Of two fits the later one goes on from the
last whole checkpoint. Kueue holds a RayJob back by its label and ``suspend``. KubeRay makes a token for every cluster
(``authOptions``).

References:
    KubeRay API reference, ray.io/v1, RayJobSpec and RayClusterSpec (v1.6).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence

import yaml

from sfg_dist.job.config import Job
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.threads import wait_passively
from sfg_dist.launch.profile import KubeRayProfile, Setup
from sfg_dist.launch.submission import HERE, Order, Rendered, Submission, run_command, stage_words, without_address

MOUNT = "/etc/sfg"
Manifest = dict[str, object]
"""An object of Kubernetes, or a part of one."""
ENDED = ("Complete", "Failed", "ValidationFailed")
MAX_NAME = 40  # KubeRay adds its own words, and 63 characters are all that a label has


def render(submission: Submission, order: Order) -> Rendered:
    """The manifests of a submission and the command that applies them.

    Raises:
        ConfigError: the pods do not share a place that a job names, or the job waits for others.
    """
    profile = order.profile
    if order.apart or order.after:
        raise ConfigError("--to kuberay: stages run one after the other in one RayJob: leave --apart and --after out")
    kube = profile.kuberay
    if kube.queue is not None and kube.autoscaling:
        raise ConfigError("kuberay.queue: Kueue admits a RayJob of fixed size: set kuberay.autoscaling = false")
    files = {}
    for number, job in enumerate(order.jobs):
        _check_place(job, kube)
        name = object_name(submission, number, len(order.jobs))
        text = without_address(job).to_toml()
        documents = [config_map(name, kube, text), ray_job(name, kube, profile.setup, order.stages)]
        files[f"{number}.yaml"] = yaml.safe_dump_all(documents, sort_keys=False)
    submission.options = {"namespace": kube.namespace, "kubectl": kube.kubectl}
    paths = [str(submission.path / name) for name in files]
    commands = [[kube.kubectl, "apply", f"--namespace={kube.namespace}", f"--filename={path}"] for path in paths]
    return Rendered(commands, files)


def object_name(submission: Submission, number: int, of: int) -> str:
    """A name that Kubernetes takes: small letters, digits and dashes, with a letter first."""
    word = re.sub(r"[^a-z0-9]+", "-", submission.name.lower()).strip("-") or "job"
    tail = submission.id.replace("-", "")[2:] + (f"-{number}" if of > 1 else "")
    return f"sfg-{word}"[: MAX_NAME - len(tail) - 1].rstrip("-") + f"-{tail}"


def _check_place(job: Job, kube: KubeRayProfile) -> None:
    places = (("output.dir", job.output.dir), ("data.source", job.data.source), ("labels.latents", job.labels.latents))
    for key, path in places:
        if path is None or is_url(path) or not path.startswith("/"):
            continue
        if not any(path == volume.path or path.startswith(f"{volume.path.rstrip('/')}/") for volume in kube.volumes):
            raise ConfigError(
                f"{key} = {path!r} is on no volume of the pods: name an s3:// URL, or a path under one of "
                f"kuberay.volumes ({', '.join(volume.path for volume in kube.volumes) or 'there are none'})"
            )


def config_map(name: str, kube: KubeRayProfile, text: str) -> Manifest:
    """The ConfigMap that mounts the job file into the pods."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": kube.namespace, "labels": _labels(kube)},
        "data": {"job.toml": text},
    }


def entrypoint(stages: Sequence[str]) -> str:
    """The command that the head runs."""
    commands = [shlex.join(["sfg", *stage_words(stage, f"{MOUNT}/job.toml"), *HERE]) for stage in stages]
    return " && ".join(commands) if len(commands) == 1 else f"bash -c {shlex.quote(' && '.join(commands))}"


def ray_job(name: str, kube: KubeRayProfile, setup: Setup, stages: Sequence[str]) -> Manifest:
    """The RayJob."""
    workers: Manifest = {
        "groupName": "workers",
        "replicas": kube.workers,
        "minReplicas": kube.workers if kube.min_workers is None else kube.min_workers,
        "maxReplicas": kube.workers,
        "rayStartParams": {},
        "template": _pod(name, kube, setup, cpus=kube.cpus, memory=kube.memory, gpus=kube.gpus),
    }
    if not kube.autoscaling:
        workers["minReplicas"] = kube.workers
    cluster: Manifest = {
        "rayVersion": kube.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": kube.autoscaling,
        "headGroupSpec": {
            # The head does no work, which could take it down. The submitter's pod and the operator reach the job
            # server by the pod's address, with the cluster's token, and Kubernetes' probes reach it by loopback: only
            # this address is both.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _pod(name, kube, setup, cpus=kube.head_cpus, memory=kube.head_memory, gpus=0),
        },
        "workerGroupSpecs": [workers],
    }
    spec: Manifest = {
        "entrypoint": entrypoint(stages),
        "submissionMode": "K8sJobMode",
        "backoffLimit": kube.backoff_limit,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": kube.ttl_s,
        "rayClusterSpec": cluster,
    }
    if kube.deadline_s is not None:
        spec["activeDeadlineSeconds"] = kube.deadline_s
    if kube.queue is not None:
        spec["suspend"] = True  # until Kueue admits it
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "namespace": kube.namespace, "labels": _labels(kube)},
        "spec": spec,
    }


def _labels(kube: KubeRayProfile) -> dict[str, str]:
    labels = {"app.kubernetes.io/name": "sfg-dist"}
    return labels | ({"kueue.x-k8s.io/queue-name": kube.queue} if kube.queue is not None else {})


def _pod(name: str, kube: KubeRayProfile, setup: Setup, *, cpus: int, memory: str, gpus: int) -> Manifest:
    sizes = {"cpu": str(cpus), "memory": memory}
    if gpus:
        sizes[kube.gpu_resource] = str(gpus)
    environment = {**setup.environment, **kube.environment}
    wait_passively(environment)
    mounts = [{"name": "job", "mountPath": MOUNT, "readOnly": True}]
    volumes: list[Manifest] = [{"name": "job", "configMap": {"name": name}}]
    for number, volume in enumerate(kube.volumes):
        mounts.append({"name": f"volume-{number}", "mountPath": volume.path, "readOnly": volume.read_only})
        claim = {"claimName": volume.claim, "readOnly": volume.read_only}
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": claim})
    container: Manifest = {
        "name": "ray",
        "image": kube.image,
        "resources": {"requests": sizes, "limits": sizes},
        "volumeMounts": mounts,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
    }
    if kube.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in kube.secrets]
    spec: Manifest = {"containers": [container], "volumes": volumes}
    if kube.fs_group is not None:
        spec["securityContext"] = {"fsGroup": kube.fs_group}
    if kube.service_account is not None:
        spec["serviceAccountName"] = kube.service_account
    if kube.node_selector:
        spec["nodeSelector"] = dict(kube.node_selector)
    if kube.tolerations:
        spec["tolerations"] = [toleration.model_dump(exclude_none=True) for toleration in kube.tolerations]
    return {"metadata": {"labels": {"app.kubernetes.io/name": "sfg-dist"}}, "spec": spec}


def send(submission: Submission, rendered: Rendered) -> None:
    """Apply the manifests.

    Raises:
        ClusterError: kubectl refused one.
    """
    for command, content in zip(rendered.commands, rendered.files.values(), strict=True):
        run_command(command, what="the RayJob could not be made")
        names = [d["metadata"]["name"] for d in yaml.safe_load_all(content) if d["kind"] == "RayJob"]
        submission.scheduler_ids += names
        submission.save()


def status(submission: Submission) -> str:
    """The states of all RayJobs, each once."""
    states = []
    for name in submission.scheduler_ids:
        shown = _kubectl(submission, ["get", "rayjob", name, "--output=json", "--ignore-not-found"])
        document = json.loads(shown) if shown.strip() else {}
        found = document.get("status", {})
        states.append(found.get("jobDeploymentStatus") or ("waiting" if document else "gone"))
    return ", ".join(dict.fromkeys(states)) or "unknown"


def is_over(state: str) -> bool:
    """Whether a status means that nothing more will happen."""
    return all(word in (*ENDED, "gone") for word in state.split(", "))


def logs_command(submission: Submission, *, follow: bool) -> list[str]:
    """The command that shows the driver's output."""
    words = [submission.options["kubectl"], "logs", f"--namespace={submission.options['namespace']}", "--tail=-1"]
    words.append(f"--selector=job-name in ({', '.join(submission.scheduler_ids)})")
    return [*words, "--follow", f"--max-log-requests={len(submission.scheduler_ids)}"] if follow else words


def cancel(submission: Submission) -> None:
    """Delete the RayJobs, their clusters and their files.

    Raises:
        ClusterError: kubectl failed.
    """
    for kind in ("rayjob", "configmap"):
        _kubectl(submission, ["delete", kind, *submission.scheduler_ids, "--ignore-not-found", "--wait=false"])


def _kubectl(submission: Submission, words: list[str]) -> str:
    command = [submission.options["kubectl"], words[0], f"--namespace={submission.options['namespace']}", *words[1:]]
    return run_command(command, what="Kubernetes could not be asked")
