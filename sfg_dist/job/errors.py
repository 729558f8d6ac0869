"""The errors that sfg_dist raises on purpose.

A message says what was expected, what was found and what to do, and names the file, column, row, key or shard.
"""


class SfgError(Exception):
    """Base of every error raised on purpose; the command line prints it without a traceback."""


class ConfigError(SfgError, ValueError):
    """The request is wrong: the message names the key, the file and the nearest valid key."""


class DataError(SfgError, ValueError):
    """The user's table cannot be used as it stands: the message names file, column and row."""


class DocumentError(SfgError, ValueError):
    """A document is not what it should be: the message names it and the field."""


class StoreError(SfgError):
    """The pairs on disk are not what they should be."""


class PlanMismatchError(StoreError):
    """The store was made by another plan; the message shows the difference."""


class IncompleteStoreError(StoreError):
    """Shards are missing; the message says which and how to go on."""


class ConflictError(StoreError):
    """Two attempts at one shard gave different bytes; the message says which, and nothing was overwritten."""


class StoreLinkError(StoreError):
    """A link stands where a file or directory of the package's is expected; it was not followed."""


class StoreFullError(StoreError):
    """No space is left where the store is."""


class StoreUnavailableError(StoreError):
    """The store did not answer in time or asked to try again; another attempt may succeed."""


class LabelingError(SfgError):
    """A shard could not be labelled; the cause is chained."""


class NonFiniteLabelError(LabelingError):
    """The flow produced a NaN or infinite label."""


class TrainingError(SfgError):
    """The fit failed; the cause is chained."""


class ExportError(SfgError):
    """A model in another format would not give the rows of the generator."""


class ClusterError(SfgError):
    """Ray or the machines under it failed."""
