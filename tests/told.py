"""What a driver might tell, made up."""

from sfg_dist.distributed.labels.events import AttemptFailed, Snapshot, WorkerState


def worker(**changes):
    keys = {
        "worker": "gpu-1", "kind": "H100", "host": "node1", "pid": 7, "device": "H100", "state": "at work", "shard": 5,
        "attempt": 2, "since": 0.0, "done": 3, "rows": 384, "seconds": 12.0,
    }  # fmt: skip
    return WorkerState(**keys | changes)


def snapshot(**changes):
    keys = {
        "driver": "me", "host": "node1", "pid": 7, "started": 0.0, "updated": 0.0, "is_running": True, "total": 8,
        "done": 3, "todo": 5, "workers": (), "failures": (), "rows_per_s": 64.0, "num_failures": {},
    }  # fmt: skip
    return Snapshot(**keys | changes)


def failed(**changes):
    keys = {"shard": 5, "action": "retry", "attempt": 1, "worker": "gpu-9", "reason": "it hangs", "error": "Hangs"}
    return AttemptFailed(**keys | changes)
