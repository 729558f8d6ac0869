"""A Ray session: the user's cluster, or one on this machine for the length of the run."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator

from sfg_dist.errors import ClusterError
from sfg_dist.threads import is_settled, wait_passively

LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one machine cannot leave itself
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_TOKEN = secrets.token_hex(32)  # one a process: Ray keeps the first that it sees
_ray_has_token = False


@contextlib.contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """Within, Ray is up; a session that is up already is used and left as it is.

    A local cluster gets a token of its own, so that no other user of the machine can send it work, and binds to
    loopback.

    Args:
        address: of a running cluster; None starts one on this machine.

    Raises:
        ClusterError: the cluster cannot be reached or started.
    """
    with contextlib.ExitStack() as stack:
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            yield
            return
        if address is None:
            stack.enter_context(local_environment())
        import ray  # after the environment: Ray reads its authentication mode once, when it is imported

        terminate = signal.getsignal(signal.SIGTERM)
        try:
            if address is None:
                ray.init(
                    address="local",  # else it would join whatever Ray this user started last on the machine
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                    _node_ip_address="127.0.0.1",
                )
            else:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ClusterError(_explain(address, error)) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray put its own in place, which ends the process at once
        try:
            yield
        finally:
            ray.shutdown()


def _explain(address: str | None, error: Exception) -> str:
    if address is None:
        return f"Ray could not be started on this machine ({error}); `--executor inline` does without it"
    return (
        f"the Ray cluster at {address} cannot be reached ({error}): check executor.address, and that RAY_AUTH_TOKEN "
        f"holds the token that the cluster was started with"
    )


@contextlib.contextmanager
def local_environment() -> Iterator[None]:
    """Within, a Ray started on this machine has a token of this process, little idle work and threads that sleep.

    The environment is put back after. Ray reads its authentication mode once, when it is imported; where the user's
    program imported it first, Ray's own way of making a token stands.
    """
    global _ray_has_token
    _ray_has_token = _ray_has_token or "ray" not in sys.modules
    values = {name: os.environ.get(name, value) for name, value in LOCAL_ENVIRONMENT.items()}
    if not is_settled():
        wait_passively(values)
    if _ray_has_token:
        values |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def draining_nodes() -> dict[str, float]:
    """Nodes of the running Ray that are about to go away: when, in seconds since 1970, infinite where none is given.

    Ray tells its own libraries so through a private module; where another version has it no longer, nothing is drained
    and a node that goes is found by its lost actors.
    """
    try:
        from ray._private.state import state

        return {node: at / 1000 if at else math.inf for node, at in state.get_draining_nodes().items()}
    except Exception:
        return {}
