"""A Ray session: the user's cluster, or one on this machine for the length of the run."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sfg_dist.job.errors import ClusterError
from sfg_dist.job.search_path import PACKAGE_ROOT, inherited_path, is_on_path_by_name
from sfg_dist.job.threads import is_settled, wait_passively

LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACE = "lo" if sys.platform == "linux" else "lo0"
MANY_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
LOCAL_ENVIRONMENT = {
    # Else Ray replaces an address of loopback by the machine's, and listens on all addresses.
    MANY_MACHINES: "0",
    "GLOO_SOCKET_IFNAME": LOOPBACK_INTERFACE,
    "NCCL_SOCKET_IFNAME": LOOPBACK_INTERFACE,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one machine cannot leave itself
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

MAX_BASE = 24
"""Characters of a directory with room for Ray's sockets: a socket's path has 103, and Ray's names take up to 79."""
LEAST_ROOM = 32 << 20
CONNECT_S = 2.0  # within which a port of this machine answers

_TOKEN = secrets.token_hex(32)


@contextlib.contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """Within, Ray is up; a session that is up already is used and left as it is.

    A local cluster gets a token of its own, so that no other user of the machine can send it work, and listens on
    loopback alone.

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
            folder = stack.enter_context(session_directory())
            stack.enter_context(local_environment({"PYTHONPATH": _workers_path(folder)}))
        elif _is_on_loopback_alone(address):
            stack.enter_context(_environment({MANY_MACHINES: "0"}))
        import ray

        terminate = signal.getsignal(signal.SIGTERM)
        options: dict[str, Any] = {
            "job_config": job_config(is_local=address is None), "log_to_driver": False, "configure_logging": False,
        }  # fmt: skip
        if address is None:
            options |= {"include_dashboard": False, "_node_ip_address": LOOPBACK}
            # Ray opens the directory that it is given to everybody: that is one behind a door that only we pass.
            options["_temp_dir"] = str(folder / "r")
        try:
            # "local": else it would join whatever Ray this user started last on the machine.
            ray.init(address=address or "local", **options)
        except Exception as error:  # Ray raises that very class where a machine is too busy to start it in time
            raise ClusterError(_explain(address, error)) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray put its own in place, which ends the process at once
        try:
            yield
        finally:
            ray.shutdown()


def _is_on_loopback_alone(address: str) -> bool:
    """Whether a cluster listens on loopback and nowhere else: Ray would look for it at the machine's own address.

    Raises:
        ClusterError: nothing listens there, for which Ray would wait long.
    """
    host, _, port = address.rpartition(":")
    if host not in (LOOPBACK, "localhost") or not port.isdigit() or MANY_MACHINES in os.environ:
        return False
    from ray.util import get_node_ip_address

    if _listens(get_node_ip_address(), int(port)):
        return False
    if not _listens(LOOPBACK, int(port)):
        raise ClusterError(_explain(address, f"nothing listens at port {port} of this machine"))
    return True


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


class _OwnPath(list[str]):
    """Directories that workers import from before all others; Ray may add none."""

    def extend(self, _: Iterable[str]) -> None:
        """Leave out what Ray adds, which is the working directory and the script's: the user's files lie there."""


def job_config(*, is_local: bool) -> Any:
    """Ray's settings of a job whose workers find their modules where this package is, and never beside the job.

    Args:
        is_local: whether the workers inherit this process's environment, which then says where the package is.
    """
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _OwnPath([] if is_local or not is_on_path_by_name() else [PACKAGE_ROOT])
    return config


@contextlib.contextmanager
def session_directory() -> Iterator[Path]:
    """A directory for a local Ray's sockets, logs and spilled objects, removed at the end.

    Raises:
        ClusterError: there is no place for it; the message names TMPDIR.
    """
    refused = {}
    for base in dict.fromkeys((_temporary_directory(), "/tmp", "/var/tmp")):
        if reason := _unfit(base):
            refused[base or "TMPDIR"] = reason
            continue
        with tempfile.TemporaryDirectory(prefix="sfg-", dir=base, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
            return
    reasons = "; ".join(f"{base} {reason}" for base, reason in refused.items())
    raise ClusterError(
        f"Ray needs a directory for its sockets, and found none: {reasons}. Set TMPDIR to a local directory with a "
        f"short name, or use `--executor inline`"
    )


def _workers_path(folder: Path) -> str:
    """PYTHONPATH of workers; a package that is not installed gets a directory of its own, which hides no other."""
    if not is_on_path_by_name():
        return inherited_path()
    own = folder / "package"
    own.mkdir()
    (own / "sfg_dist").symlink_to(Path(PACKAGE_ROOT, "sfg_dist"))
    return inherited_path(str(own))


def _temporary_directory() -> str:
    """What the environment names, whether it can be used or not; else the system's."""
    named = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR")
    if named:
        return os.path.abspath(named)
    try:
        return tempfile.gettempdir()
    except OSError:
        return ""


def _unfit(base: str) -> str:
    """Why Ray's directory cannot lie there; empty where it can."""
    if not base.isascii():
        return "has a name with letters that Ray cannot take"
    if len(base) > MAX_BASE:
        return f"has a name of {len(base)} characters, of which a socket leaves {MAX_BASE}"
    try:
        with tempfile.TemporaryFile(dir=base or os.curdir) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        return f"cannot be written ({error.strerror or 'no such directory'})"
    facts = os.stat(base or os.curdir)
    if facts.st_mode & 0o022 and not facts.st_mode & stat.S_ISVTX:
        return "can be written by others, who could put their own sockets in place of ours (chmod +t)"
    if hasattr(os, "getuid") and facts.st_uid not in (0, os.getuid()):
        return "belongs to another user, who could put sockets in place of ours"
    if shutil.disk_usage(base).free < LEAST_ROOM:
        return f"has less than {LEAST_ROOM >> 20} MiB free"
    return ""


def _explain(address: str | None, error: Exception | str) -> str:
    if address is None:
        return f"Ray could not be started on this machine ({error}); `--executor inline` does without it"
    return (
        f"the Ray cluster at {address} cannot be reached ({error}): check executor.address, and that RAY_AUTH_TOKEN "
        f"holds the token that the cluster was started with"
    )


@contextlib.contextmanager
def local_environment(more: Mapping[str, str] | None = None) -> Iterator[None]:
    """Within, a Ray started on this machine has a token of this process, little idle work and threads that sleep.

    It listens on loopback, unless the environment names other interfaces or has RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER = 1.
    At the end the environment is as it was.

    Raises:
        ClusterError: Ray was imported before, and does not take these settings any more.
    """
    values = {name: os.environ.get(name, value) for name, value in LOCAL_ENVIRONMENT.items()}
    if not is_settled():
        wait_passively(values)
    values |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    with _environment(values | dict(more or {})):
        yield


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Within, the environment has these variables too, and Ray goes by them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        _let_ray_read_again()
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        with contextlib.suppress(ClusterError):
            _let_ray_read_again()


def _let_ray_read_again() -> None:
    """Have a Ray that is imported already take its token and its addresses from the environment as it is now.

    Ray reads them once, at its import. Without this it would listen on all addresses, and write a token of its own into
    a file that others can read.

    Raises:
        ClusterError: this version of Ray has no way to do it.
    """
    if "ray" not in sys.modules:
        return
    try:
        from ray import _raylet
        from ray._private import ray_constants

        raylet: Any = _raylet  # whose stubs leave these out
        constants: Any = ray_constants
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
        has_many = constants.env_bool(MANY_MACHINES, not constants.IS_WINDOWS_OR_OSX)
        if has_many != constants.ENABLE_RAY_CLUSTER:  # an error where another version has none
            constants.ENABLE_RAY_CLUSTER = has_many
    except (ImportError, AttributeError) as error:
        raise ClusterError(
            "Ray was imported before this session began, and this version of Ray would then listen on all addresses "
            "of the machine: let this package import it, or call ray.init() first, and that session is used"
        ) from error


def draining_nodes() -> dict[str, float]:
    """Nodes of the running Ray that are about to go away, and when: seconds since 1970, infinite where nobody said.

    Ray tells its own libraries so through a private module. Where another version lacks it, a node that goes is found
    by its lost actors.
    """
    try:
        from ray._private.state import state

        return {node: at / 1000 if at else math.inf for node, at in state.get_draining_nodes().items()}
    except Exception:
        return {}
