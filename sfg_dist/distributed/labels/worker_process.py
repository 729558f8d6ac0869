"""A process that labels without Ray, and the template that such processes are forked from.

    python -m sfg_dist.distributed.labels.worker_process HANDLE fork|serve

The template imports what labels need and then forks a worker for every connection that comes through its socket. So a
worker starts in milliseconds and shares the memory of the imports. The socket ends with the driver, and the template
then ends its workers and itself. With "serve" it is the worker itself, for systems where a fork is not safe.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection

from sfg_dist.distributed.failure import Failure
from sfg_dist.distributed.labels.shards import Maker, label_tasks, worker_info
from sfg_dist.distributed.stopping import ignore_stops


def serve(handle: int) -> None:
    """Tell the driver this process's id, make a labeler as it says, and label what it asks for.

    Raises:
        EOFError, OSError: the driver has gone, or wants no more.
    """
    driver: Connection = Connection(handle)
    driver.send(os.getpid())
    started = time.perf_counter()
    try:
        make: Maker = driver.recv()
        labeler = make()
    except Exception as error:
        driver.send(Failure.of(error))
        return
    driver.send(replace(worker_info(labeler), load_s=time.perf_counter() - started))
    while True:
        driver.send(label_tasks(labeler, driver.recv()))


def _end_serving(handle: int) -> None:
    """Serve, and end this process without what the template would do at its own end."""
    status = 0
    try:
        serve(handle)
    except (EOFError, OSError):
        pass
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        os._exit(status)


def main(handle: int, *, forks: bool) -> None:
    """The template; without ``forks``, a worker."""
    ignore_stops()  # they reach the driver, which decides
    import sfg_dist.distributed.labels.labeler  # noqa: F401 - it takes most of the time of a start

    workers = []
    with socket.socket(fileno=handle) as driver:
        while True:
            message, handles, _, _ = socket.recv_fds(driver, 1, 1)
            if not message:
                break
            try:
                pid = os.fork() if forks else 0
            except OSError:  # the driver sees the end of the connection, and reads why in the log
                traceback.print_exc()
                os.close(handles[0])
                continue
            if pid == 0:
                driver.close()
                _end_serving(handles[0])
            os.close(handles[0])
            workers.append(pid)
    for pid in workers:  # none was waited for before, so that no other process has its id
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os._exit(0)  # nothing is left to be tidied up, and torch takes its time for it


if __name__ == "__main__":
    main(int(sys.argv[1]), forks=sys.argv[2] == "fork")
