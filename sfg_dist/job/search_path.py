"""Modules are never imported from the working directory, whose files are the user's.

A ``zarr.py`` beside a job would be taken for the library of that name. Python puts the working directory first for
``python -m`` and where PYTHONPATH has an empty entry, and Ray puts it first for its workers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

PACKAGE_ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 2))
"""The directory that holds this package."""
_LIBRARIES = ("site-packages", "dist-packages")
# A child sets its search path before it imports anything.
_START = (
    "import sys; sys.path[:] = sys.argv[1].split({separator!r}); del sys.argv[:2]; "
    "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def without_users_files(path: Iterable[str]) -> list[str]:
    """A search path without the working directory and the script's folder, in which a user's files lie.

    If one of these holds this package, it goes to the end, where it hides no other package.
    """
    path = list(path)
    kept = [entry for entry in path if entry and not _is_users(entry)]
    lost = any(_real(entry) == _real(PACKAGE_ROOT) for entry in path if not entry or _is_users(entry))
    return [*kept, PACKAGE_ROOT] if lost else kept


def clean() -> None:
    """Keep this process, which is the command line's, and all that it starts from importing the user's files."""
    sys.path[:] = without_users_files(sys.path)
    os.environ["PYTHONSAFEPATH"] = "1"  # for children that libraries start by ``python -m`` or ``-c``, as joblib does
    if "PYTHONPATH" in os.environ:  # of children, which look there before any line of ours
        os.environ["PYTHONPATH"] = inherited_path()


def child_environment() -> dict[str, str]:
    """The environment of a child process, whose first imports find none of the user's files either."""
    return {**os.environ, "PYTHONPATH": inherited_path()} if "PYTHONPATH" in os.environ else dict(os.environ)


def python_command(module: str, *words: str) -> list[str]:
    """The command that runs a module with arguments, as ``python -m`` does, on this process's cleaned search path."""
    path = os.pathsep.join(without_users_files(sys.path))
    return [sys.executable, "-P", "-c", _START.format(separator=os.pathsep), path, module, *words]


def inherited_path(*first: str) -> str:
    """PYTHONPATH for other processes: the environment's without the user's directories, behind those of ``first``."""
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and not _is_users(entry)]
    return os.pathsep.join([*first, *given])


def is_on_path_by_name() -> bool:
    """Whether the package is a checkout with its own entry on the search path, and not an installed package."""
    return os.path.basename(PACKAGE_ROOT) not in _LIBRARIES and any(
        _real(entry) == _real(PACKAGE_ROOT) for entry in sys.path
    )


def _is_users(entry: str) -> bool:
    place = _real(entry)
    if os.path.basename(place) in _LIBRARIES or place == os.path.dirname(_real(os.__file__)):
        return False  # somebody works in there
    script = _real(os.path.dirname(sys.argv[0]) or ".") if sys.argv and sys.argv[0] else ""
    is_script = bool(sys.path) and place == script == _real(sys.path[0])
    return is_script or place == _real(".")


def _real(entry: str) -> str:
    try:
        return os.path.realpath(entry or ".")
    except OSError:  # the working directory was removed
        return entry
