"""Paths and URLs that a user names, and private folders of this user."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from sfg_dist.job.errors import ConfigError
from sfg_dist.job.words import shown

LONGEST_NAME, LONGEST = 255, 4095
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, for a time, AWS_SESSION_TOKEN",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_KEY",
}
_VARIABLE = re.compile(r"\$\w+(?=/|$)|\$\{\w+\}|%\w+%")


def expanded(place: str) -> str:
    """A path or URL that a user named, checked, with ``~`` or ``~user`` at its front written out.

    Examples:
        >>> expanded("s3://bucket/~x")
        's3://bucket/~x'

    Raises:
        ConfigError: it is a URL with a password or a query, names an unknown user, begins with a variable, or cannot
            be a file's name.
    """
    try:
        length = len(place.encode())
    except UnicodeEncodeError:
        is_utf8 = sys.getfilesystemencoding().lower() == "utf-8"
        remedy = "rename it" if is_utf8 else "set LC_ALL=C.UTF-8, since this terminal has another encoding"
        raise ConfigError(f"{shown(place)} is not valid UTF-8: {remedy}") from None
    if any(unicodedata.category(letter) == "Cc" for letter in place):
        raise ConfigError(f"{shown(place)} holds control characters: rename it")
    require_no_secrets(place)
    if "://" not in place and (length > LONGEST or max(len(part.encode()) for part in place.split("/")) > LONGEST_NAME):
        raise ConfigError(
            f"{shown(place)} is too long: a file's name has {LONGEST_NAME} bytes at most, and a path {LONGEST}"
        )
    if variable := _VARIABLE.match(place):
        raise ConfigError(
            f"{shown(place)} begins with a variable, which is not replaced: write what {variable[0]} stands for, or "
            f"./{variable[0]} for a file of that name"
        )
    if not place.startswith("~"):
        return place
    found = os.path.expanduser(place)
    if found.startswith("~"):
        user = place.partition("/")[0]
        whose = "HOME is not set" if user == "~" else f"there is no user {user[1:]}"
        raise ConfigError(f"{shown(place)} has no meaning: {whose}; write ./~ for a file of that name")
    return found


def require_no_secrets(place: str) -> str:
    """The path or URL itself.

    Raises:
        ConfigError: it has a user, a password or a query, which would be stored with the job.
    """
    scheme, separator, rest = place.partition("://")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    scheme = scheme.strip().lower()
    login = host.rpartition("@")[0]
    if scheme in ("abfs", "abfss") and ":" not in login:
        login = ""  # the container
    if not separator or not (login or "?" in rest):
        return place
    kind = {"s3a": "s3", "s3": "s3", "gs": "gs"}.get(scheme, "az" if scheme.startswith(("az", "ab", "ad")) else "")
    held = _VARIABLES.get(kind, "an environment variable of the program that asks for it")
    what = "a user or password" if login else "a query"
    raise ConfigError(
        f"the URL {shown(place)} was given with {what}, left out here, which would be stored with the job: give the "
        f"URL without, and keep keys and signatures in {held}"
    )


def place_of(name: str, place: Any) -> str:
    """The path or URL in an argument ``name`` of a call, as text with ``~`` written out.

    Raises:
        ConfigError: it is neither a text nor a path.
    """
    if isinstance(place, bytes) or not isinstance(place, str | os.PathLike):
        raise ConfigError(f"{name}: expected a path or URL, got {shown(place)}")
    return expanded(os.fspath(place))


def private_folder(name: str) -> str | None:
    """A folder of this user alone among the temporary files, the same for every process; None where there is none.

    Its files are trusted, so a folder that others could have made or written to does not count.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    try:
        folder = os.path.join(tempfile.gettempdir(), f"{name}-{user}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        facts = os.lstat(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return None
    is_ours = facts.st_mode & 0o170077 == 0o040000 and (not hasattr(os, "getuid") or facts.st_uid == user)
    return folder if is_ours else None


def spare_home(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have Matplotlib draw without a screen, and keep its font cache elsewhere where the home cannot be written.

    Matplotlib would otherwise print warnings, and end the process where MPLBACKEND is misspelt.
    """
    environment["MPLBACKEND"] = "agg"
    home = os.path.expanduser("~")
    if "MPLCONFIGDIR" not in environment and not (os.path.isdir(home) and os.access(home, os.W_OK)):
        folder = private_folder("sfg-fonts")
        if folder is not None:
            environment["MPLCONFIGDIR"] = folder


def nearest_there(path: Path) -> Path:
    """The path itself where it exists, else the nearest folder above it that this user can see."""
    place = path.absolute()
    while not os.path.exists(place):  # False also for what this user may not look at
        place = place.parent
    return place


def free_disk(path: Path) -> int:
    """Bytes that this user may still write where ``path`` is or would be."""
    return shutil.disk_usage(nearest_there(path)).free
