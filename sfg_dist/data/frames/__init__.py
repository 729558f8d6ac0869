"""Tables in memory, of pandas, polars, Arrow and numpy: read as columns, and given back as what they were.

``kinds`` says what a table is, and ``containers`` keeps its schema, for which ``arrow_types`` has the words.
``plain_columns`` turns columns of its types into those that the room data reads, and back. ``pandas_columns``,
``polars_columns`` and ``numpy_columns`` know what these libraries say of a column. Neither pandas nor polars is
imported before a table of theirs comes in or is asked for.
"""

from sfg_dist.data.frames.containers import (
    CONTAINER_FIELDS,
    Container,
    columns_of_rows,
    open_frame,
    plain_frame,
    rows_of_frame,
)
from sfg_dist.data.frames.kinds import check_container, is_frame, source_of

__all__ = [
    "CONTAINER_FIELDS",
    "Container",
    "check_container",
    "columns_of_rows",
    "is_frame",
    "open_frame",
    "plain_frame",
    "rows_of_frame",
    "source_of",
]
