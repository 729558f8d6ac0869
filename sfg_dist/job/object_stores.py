"""Object stores by URL: how they are opened, how long they are waited for, and what their errors mean.

Credentials, region and endpoint come from the environment, as obstore reads them (``AWS_ACCESS_KEY_ID``,
``AWS_REGION``, ``AWS_ENDPOINT_URL``, ``GOOGLE_SERVICE_ACCOUNT``, ``AZURE_STORAGE_ACCOUNT_NAME``, ...). An endpoint
given as ``http://`` is allowed to be plain HTTP. A request that meets a lost connection, a 5xx answer or "slow down" is
sent again after a growing pause, until RETRY_S have passed.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from sfg_dist.job.words import without_secrets as without_secrets

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

CONNECT_S = 10
"""Seconds in which a connection must stand."""
REQUEST_S = 120
"""Seconds in which one request must be answered in full."""
RETRY_S = 180
"""Seconds from a first request after which it is not sent again."""
MAX_RETRIES = 10

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
SCHEMES = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss")

SECRET_NAME = re.compile(
    r"KEY|SECRET|TOKEN|PASSW|PASSPHRASE|CREDENTIAL|CONNECTION_STRING|COOKIE|(^|_)(PASS|PWD|AUTH|SAS|DSN)\d*$", re.I
)
MIN_SECRET_LENGTH = 8  # shorter values are words that a path may hold too

Trouble = Literal["full", "unavailable", "other"]
_FULL = re.compile(r"No space left|StorageFull|Disk quota exceeded|QuotaExceeded|\b507\b|os error (28|122)\b", re.I)
_UNAVAILABLE = re.compile(
    r"timed? ?out|timeout|SlowDown|slow down|status code: (408|409|429|5\d\d)|error sending request|connection|"
    r"connect\b|dns error|after \d+ retries|error decoding response body|os error (4|11|16|110|111|112|113|116)\b",
    re.I,
)
# Where credentials are asked for when the environment has none: the metadata of a machine in Amazon's cloud.
_NO_CREDENTIALS = re.compile(r"/latest/(api/token|meta-data/iam)\b|Missing (SecretAccessKey|AccessKeyId)\b")
NO_CREDENTIALS = (
    "found no credentials, or half of them: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_REGION, or "
    "AWS_ENDPOINT_URL for a store that is not Amazon's), or AWS_SKIP_SIGNATURE=true for a public bucket"
)
_BUSY = {
    getattr(errno, name)
    for name in ("EINTR", "EAGAIN", "EBUSY", "ETIMEDOUT", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "ESTALE", "EPIPE")
    if hasattr(errno, name)
}
_ALL_FULL = {errno.ENOSPC, errno.EDQUOT}


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place names a scheme, such as ``s3://``."""
    return "://" in str(place)


def absolute_url(place: str | os.PathLike[str]) -> str:
    """A place as a process in another working directory names it."""
    return str(place) if is_url(place) else os.path.abspath(place)


def open_objects(url: str) -> Any:
    """The obstore store of an ``s3://bucket/prefix``, ``gs://`` or ``az://`` URL; keys are below the prefix.

    Raises:
        ValueError: the scheme is not one of an object store, or the URL has no bucket.
    """
    import obstore.store

    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise ValueError(f"{without_secrets(url)}: expected a local path or an s3://, gs:// or az:// URL")
    if not re.match(r"[^/?#]", rest):
        raise ValueError(f"{without_secrets(url)}: expected {scheme}://bucket/prefix, found no bucket")
    return obstore.store.from_url(url, client_options=client_options(), retry_config=retry_config())


def client_options() -> ClientConfig:
    """Time limits of a request, and plain HTTP where the environment's endpoint asks for it."""
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "timeout": timedelta(seconds=REQUEST_S),
    }
    if any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS):
        options["allow_http"] = True
    return options


def retry_config() -> RetryConfig:
    """How often and how long a request is sent again."""
    return {
        "max_retries": MAX_RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_S),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
    }


def trouble_of(error: BaseException) -> Trouble:
    """What an error of a store means: no space, no answer (another attempt may succeed), or anything else."""
    number = getattr(error, "errno", None)
    text = f"{error}"
    if number in _ALL_FULL or _FULL.search(text):
        return "full"
    if number in _BUSY or isinstance(error, TimeoutError | ConnectionError):
        return "unavailable"
    if number is None and _UNAVAILABLE.search(text):
        return "unavailable"
    return "other"


def lacks_credentials(error: BaseException) -> bool:
    """Whether an error of a store means that it was to be asked without credentials."""
    return _NO_CREDENTIALS.search(str(error)) is not None


def plain_reason(error: BaseException) -> str:
    """What an error says, its first line, without secrets."""
    if lacks_credentials(error):
        return NO_CREDENTIALS
    strerror = getattr(error, "strerror", None)
    return without_credentials(str(strerror or str(error).strip().split("\n")[0] or type(error).__name__))


def reason_of(error: BaseException) -> str:
    """Why a write or read of a run failed, in one line; where it is known what to do, with that."""
    trouble = trouble_of(error)
    if trouble == "full":
        return "no space left on the device; what is committed is safe: free some space and run the same command again"
    if trouble == "unavailable" and not lacks_credentials(error):
        return f"{plain_reason(error)}; what is committed is safe: run the same command again when the store answers"
    return plain_reason(error)


def without_credentials(value: Any) -> Any:
    """A text with every value of a secret environment variable replaced by its name, and URLs without passwords.

    The values are found as they are, within JSON and within URLs. Of mappings and lists all texts are done, and all
    else stays.

    Examples:
        >>> os.environ["AWS_SECRET_ACCESS_KEY"] = "wJalrXUtnFEMI"               # doctest: +SKIP
        >>> without_credentials("signed with wJalrXUtnFEMI")                        # doctest: +SKIP
        'signed with <AWS_SECRET_ACCESS_KEY>'
    """
    secrets = {name: text for name, text in os.environ.items() if len(text) >= MIN_SECRET_LENGTH and _is_secret(name)}
    # A secret may begin as another one does.
    return _without(value, sorted(secrets.items(), key=lambda item: -len(item[1])))


def _without(value: Any, secrets: Sequence[tuple[str, str]]) -> Any:
    if isinstance(value, str):
        for name, secret in secrets:
            value = _written(secret).sub(f"<{name}>", value)
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {_without(key, secrets): _without(each, secrets) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without(each, secrets) for each in value]
    return value


@functools.cache
def _is_secret(name: str) -> bool:
    return SECRET_NAME.search(name) is not None and name not in ("PWD", "OLDPWD")


@functools.lru_cache(maxsize=256)
def _written(secret: str) -> re.Pattern[str]:
    """All ways in which a text is written: as it is, in strings of JSON and of Python, percent-encoded."""
    return re.compile("".join(letter if letter.isascii() and letter.isalnum() else _ways(letter) for letter in secret))


def _ways(letter: str) -> str:
    octets = letter.encode("utf-8", errors="surrogateescape")
    units = letter.encode("utf-16-be", errors="surrogatepass")
    ways = [
        rf"\\*{re.escape(letter)}",
        "".join(f"%(?:25)*{octet:02x}" for octet in octets),
        "".join(rf"\\+u{units[place : place + 2].hex()}" for place in range(0, len(units), 2)),
        rf"\\+{re.escape(repr(letter)[1:-1].lstrip(chr(92)) or letter)}",
        *([rf"\\+x{ord(letter):02x}"] if ord(letter) < 256 else []),
        *([r"\+|\s"] if letter.isspace() else []),  # a message of one line has spaces for ends of lines
    ]
    return f"(?i:{'|'.join(ways)})"
