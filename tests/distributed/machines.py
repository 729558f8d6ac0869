"""Made-up machines, workers and paces, and the bytes of a store, for the tests of what a job will take."""

from sfg_dist.distributed.labels.sizes import store_bytes
from sfg_dist.distributed.labels.worker_count import Workers
from sfg_dist.distributed.machine import Gpu, Machine
from sfg_dist.job.config import ExecutorConfig
from sfg_dist.job.words import GIB
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import open_pairs
from sfg_dist.studies.estimate.calibration import Pace

MACHINE = Machine(num_cpus=4, memory_bytes=64 * GIB, available_bytes=32 * GIB)
GPUS = (Gpu("a", 16 * GIB), Gpu("b", 16 * GIB))
PACE = Pace(
    device="x86_64",
    seconds_per_row=0.01,
    evaluations_per_row=8.0,
    pairs_per_row=100.0,
    spread=0.1,
    write_s=0.5,
    check_s=0.0,
    import_s=2.0,
    open_s=1.0,
    first_s=0.5,
    host_bytes=GIB,
    device_bytes=0,
    commit_bytes=600.0,
    cpu_share=0.5,
    num_rows=1000,
    num_workers=2,
)


def on_cpus(**keys) -> ExecutorConfig:
    """Actors that leave the GPUs of a cluster alone, which no job can ask for."""
    return ExecutorConfig(**keys).model_copy(update={"num_gpus_per_actor": 0})


def workers(executor="ray", *, group=1, elsewhere=False, gpus=0.0, **kinds) -> Workers:
    return Workers(executor, kinds or {"cpu": 2}, gpus, 1, group, elsewhere)


def expected_bytes(job):
    """What ``store_bytes`` says of a job."""
    pipeline = Pipeline(job)
    prepared = pipeline.prepared
    pairs = open_pairs(job.output.dir)
    reference = prepared.reference()
    return store_bytes(
        pairs.plan,
        num_reference=len(reference),
        has_order="order" in pairs.group["reference"],
        transform_arrays=prepared.transform.to_arrays(),
        transform_metadata=prepared.transform.to_metadata(),
        num_queries=pairs.plan.num_pairs if pairs.plan.identity["queries"] else None,
    )
