"""The profile of a site, cluster/*.toml, checked in full before anything is sent."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, field_validator

from sfg_dist.job.config import integral
from sfg_dist.job.key_types import MustBe
from sfg_dist.job.paths import require_no_secrets
from sfg_dist.job.toml_documents import apply_override, checked, parse_document, read_document

Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
WALLTIME = r"^(([0-9]{1,6}-)?[0-9]{1,9}(:[0-9]{1,2}){0,2}|(?i:unlimited|infinite))$"
WALLTIME_WORDS = 'a time such as "90" (minutes), "1:30:00" or "2-12:00:00" (days-hours), or "UNLIMITED"'
MEMORY = 'a size such as "64G": a whole number and K, M, G or T'
QUANTITY = r"^[0-9]{1,15}(\.[0-9]{1,3})?([EPTGMK]i?)?$"
QUANTITY_WORDS = 'a size such as "16Gi"'
_MOST = 1_000_000_000
PositiveInt = Annotated[int, Strict(), BeforeValidator(integral), Field(gt=0, le=_MOST)]
Count = Annotated[int, Strict(), BeforeValidator(integral), Field(ge=0, le=_MOST)]


class _Section(BaseModel):
    # Numbers count as text: an account or a variable may be a number without quotes.
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Container(_Section):
    """The image in which Ray and the package run, and the command that enters it.

    Each of Ray's processes enters its own container, so the runtime must share processes, sockets and shared memory of
    the node between them.
    """

    runtime: Literal["apptainer", "singularity", "enroot"] = "apptainer"
    image: str = Field(min_length=1)
    options: list[str] = []


class Setup(_Section):
    """What a node needs before Python starts."""

    modules: list[str] = []  # loaded with ``module load``, in order
    environment: dict[Variable, str] = {}  # variables of every process
    commands: list[str] = []  # lines of shell, run as they stand
    # an interpreter that has the package, on every node or in the container. The default is that of ``sfg``, or
    # "python" in a container.
    python: str | None = None
    host_python: str = "python3"  # the host's Python, 3.9 or newer, which starts Ray in a container
    scratch: str | None = None  # a local directory of every node for Ray's sessions, with a short path. Default /tmp.
    dir: str = "runs/submissions"  # where submissions are kept; all nodes share it
    container: Container | None = None


class SlurmProfile(_Section):
    """What is asked of Slurm."""

    nodes: PositiveInt = 1
    cpus_per_node: PositiveInt | None = None  # None takes whole nodes
    gpus_per_node: Count = 0
    gpu_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$"), MustBe("one word, such as a100")] | None = None
    # as Slurm writes it, "64G"
    memory_per_node: Annotated[str, Field(pattern=r"^[0-9]{1,15}[KMGT]?$"), MustBe(MEMORY)] | None = None
    # "30", "1:30:00" or "2-12:00:00", as Slurm reads it
    walltime: Annotated[str, Field(pattern=WALLTIME), MustBe(WALLTIME_WORDS)] = "1:00:00"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    # Slurm's notice before the walltime, 40 to 65535; shards at work may use all of it but the last minute
    signal_before_s: Annotated[int, Strict(), BeforeValidator(integral), Field(ge=40, le=65_535)] = 180
    # how often a job that met its walltime goes on; it stops earlier after two attempts in a row without progress
    max_requeues: Count = 100
    options: list[str] = []  # more words for sbatch, such as "--mail-type=END"

    @field_validator("options")
    @classmethod
    def _are_options(cls, options: list[str]) -> list[str]:
        for option in options:
            if not option.startswith("--"):
                raise ValueError(f"{option!r} is no long option of sbatch: write one word such as '--mail-type=END'")
        return options

    @property
    def gres(self) -> str:
        """The GPUs of a node, as --gres names them."""
        return ":".join(filter(None, ["gpu", self.gpu_type, str(self.gpus_per_node)]))


class Volume(_Section):
    """A persistent volume claim and where it appears."""

    claim: str
    path: Annotated[str, Field(pattern=r"^/"), MustBe("a path from the root, such as /data")]
    read_only: bool = False


class Toleration(_Section):
    """As in a pod's specification."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class KubeRayProfile(_Section):
    """What is asked of Kubernetes."""

    namespace: str = "default"  # of all objects
    image: str = "sfg-dist:latest"  # holds the package; see cluster/Dockerfile
    ray_version: str = "2.60.0"  # of that image
    workers: PositiveInt = 1  # pods
    min_workers: Count | None = None
    autoscaling: bool = False  # whether KubeRay adds and removes workers
    cpus: PositiveInt = 4  # of a worker pod, as the next two
    memory: Annotated[str, Field(pattern=QUANTITY), MustBe(QUANTITY_WORDS)] = "16Gi"
    gpus: Count = 0
    head_cpus: PositiveInt = 2  # of the head's pod
    head_memory: Annotated[str, Field(pattern=QUANTITY), MustBe(QUANTITY_WORDS)] = "8Gi"
    gpu_resource: str = "nvidia.com/gpu"  # the name of a GPU among the node's resources
    queue: str | None = None  # of Kueue; None for none
    # the next four as in a pod's specification
    service_account: str | None = None
    node_selector: dict[str, str] = {}
    tolerations: list[Toleration] = []
    volumes: list[Volume] = []
    environment: dict[Variable, str] = {}  # variables of every pod
    secrets: list[str] = []  # names of Kubernetes secrets whose keys become variables
    backoff_limit: Count = 3  # attempts after the first one; they may overlap with it
    deadline_s: PositiveInt | None = None  # of the whole job
    ttl_s: Count = 0  # how long the cluster of an ended job is kept, with its GPUs
    fs_group: Count | None = 1000  # the group that owns volumes; 1000 is that of the image's user
    kubectl: str = "kubectl"  # the command


class RayProfile(_Section):
    """A Ray cluster that runs already."""

    # of its dashboard, "http://127.0.0.1:8265"
    address: Annotated[str, AfterValidator(require_no_secrets)] | None = None
    sfg: str = "sfg"  # the command on the cluster's nodes
    environment: dict[Variable, str] = {}  # variables of the job


class Profile(_Section):
    """A site."""

    setup: Setup = Setup()
    slurm: SlurmProfile = SlurmProfile()
    kuberay: KubeRayProfile = KubeRayProfile()
    ray: RayProfile = RayProfile()


def load_profile(path: str | Path | None, overrides: Iterable[str] = ()) -> Profile:
    """A site's profile with overrides such as ``"slurm.partition=debug"``; the defaults where path is None.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    document = {} if path is None else parse_document(read_document(path, "profile"), f"profile {path}")
    for assignment in overrides:
        apply_override(document, assignment, Profile, option="--profile-set")
    slurm = document.get("slurm")
    if isinstance(slurm, dict) and isinstance(slurm.get("walltime"), datetime.time):  # 01:30:00 without quotes
        slurm["walltime"] = slurm["walltime"].isoformat()
    return checked(Profile, document, f"profile {path}" if path else "profile")


def one_line(name: str) -> str:
    """A name as schedulers can show it: without control characters, 64 characters at most."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", name).strip()[:64] or "sfg"
