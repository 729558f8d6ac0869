"""A fit of one to two workers on a cluster that gets a second node and loses it again.

Prints "workers: " and the numbers of them that it saw, as JSON; Ray prints lines of its own.

python tests/distributed/elastic.py STORE CHECKPOINTS SETTINGS
"""

import json
import os
import sys
import threading
import time
import warnings
from typing import Any

from sfg_dist.distributed.cluster import local_environment
from sfg_dist.distributed.fit import training
from sfg_dist.job.config import TrainConfig

SLOWNESS = float(os.environ.get("SFG_TEST_SLOWNESS", "1"))  # tests/patience.py measures it
PATIENCE_S = 150 * SLOWNESS
# A node that is gone is taken for lost after some seconds, and so are workers that wait for a place on it.
SHORT_WAITS = {
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": str(round(2000 * SLOWNESS)), "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(5 * SLOWNESS),
}  # fmt: skip


def main() -> None:
    url, checkpoints, settings = sys.argv[1], sys.argv[2], TrainConfig(**json.loads(sys.argv[3]))
    training.RESIZE_INTERVAL_S = 1.0
    os.environ |= SHORT_WAITS
    seen: list[dict] = []
    with local_environment():
        import ray
        from ray.cluster_utils import Cluster

        # Without what takes a processor and serves nobody here.
        head = {"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=cluster.address, log_to_driver=False)

        elastic = settings.model_copy(update={"num_workers": [1, 2]})
        options: dict[str, Any] = {"use_gpu": False, "on_live": seen.append}
        fit = threading.Thread(  # nodes come and go in the main thread
            target=training.fit_with_workers, args=(url, checkpoints, elastic), kwargs=options, daemon=True
        )
        fit.start()
        wait_for(lambda: seen and seen[-1]["num_workers"] == 1, fit)
        node = cluster.add_node(num_cpus=1)
        wait_for(lambda: seen[-1]["num_workers"] == 2, fit)
        step = seen[-1]["step"]
        wait_for(lambda: seen[-1]["step"] > step, fit)
        cluster.remove_node(node, allow_graceful=False)
        wait_for(lambda: seen[-1]["num_workers"] == 1, fit)
        step = seen[-1]["step"]
        wait_for(lambda: seen[-1]["step"] > step, fit)
        # Before Ray goes, which ends this process where the thread of the fit asks it something meanwhile.
        print("workers:", json.dumps([entry["num_workers"] for entry in seen]), flush=True)
        ray.shutdown()
        cluster.shutdown()
    os._exit(0)  # the thread has lost its Ray


def wait_for(condition, fit: threading.Thread) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if not fit.is_alive():
            raise RuntimeError("the fit has ended")
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.2)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
