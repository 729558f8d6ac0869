"""Why something failed elsewhere, as plain text: an exception may not survive the way between processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from sfg_dist.job import errors
from sfg_dist.job.object_stores import without_credentials

WORKER_LOST, HANGS, PROCESS_ENDED = NO_EXCEPTION = ("WorkerLost", "Hangs", "ProcessEnded")
"""Failures that no exception tells of."""
DIED = "its process died: killed, out of memory, or crashed"
OUT_OF_MEMORY = ("out of memory", "cannot allocate memory", "can't allocate memory")


@dataclass(frozen=True)
class Failure:
    """Why an attempt, a worker or a child process failed."""

    error: str  # name of the exception's class
    message: str  # what it said
    # whether its process had better be replaced: memory that is short stays fragmented, and after an error of the
    # device every later call fails too
    is_worker_spent: bool = False
    # the exception itself where it was raised in this process
    exception: BaseException | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, error: BaseException, *, keep: bool = False) -> Failure:
        """The failure that an exception tells of; ``keep`` holds on to the exception too."""
        message = without_credentials(str(error).strip()) or type(error).__name__
        text = message.lower()
        spent = (
            isinstance(error, MemoryError)
            or any(words in text for words in OUT_OF_MEMORY)
            or "cuda error" in text
            or type(error).__module__.startswith("ray.")  # a member of its group is gone
        )
        return cls(type(error).__name__, message, spent, error if keep else None)

    @property
    def known_class(self) -> type[errors.SfgError] | None:
        """The package's own class of the error, None for any other."""
        found = getattr(errors, self.error, None)
        return found if isinstance(found, type) and issubclass(found, errors.SfgError) else None

    def is_a(self, kind: type[errors.SfgError]) -> bool:
        """Whether the error is of one of the package's own classes."""
        return self.known_class is not None and issubclass(self.known_class, kind)

    def __str__(self) -> str:
        return self.message if self.known_class or self.error in NO_EXCEPTION else f"{self.error}: {self.message}"
