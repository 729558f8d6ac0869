"""Opens a user's table, cleans it, and maps its columns for the flow and back.

A path, a URL or a name comes in: ``table`` opens a format whole, ``rows`` by ranges, and ``column_type`` says what a
column is. A table in memory comes in by ``frames``, which give it back too. ``preparation`` cleans and splits.
``transform`` maps columns to normal scores and back, each by its quantiles (``quantile``), and the rows that the flow
sees go out. The room imports ``job`` alone of all rooms. Its conventions:

- A table is float64, shape (num_rows, num_columns), in the user's units; missing values are NaN. Where the type of a
  column has an offset, as for dates and integers beyond 2^53, the table holds value - offset.
- The flow's rows are float32, shape (num_rows, dim), with ``dim <= num_columns``: ``Transform.forward`` leaves out
  constant columns, and ``Transform.inverse`` puts them back.
- A source is a built-in name, a path, or an ``s3://`` URL. Built-in names win; ``./moons`` is the file.
- Nothing is ever unpickled; nothing is downloaded, except from the URL that the user gives.
- What cannot be used raises ``DataError``. Its message names the source, the column and the row, and the key that
  helps. A docstring lists ``DataError`` only where a caller may want to catch it.
- Rows are counted from 0 in arrays. Data rows of .csv and .parquet files are counted from 1, and the message
  says so.
- Densities are in nats, per the user's units.
- The same source and seed give the same bytes.
"""

from sfg_dist.data.csv_dialect import TextFormat
from sfg_dist.data.look import ColumnLook, TableLook, look_at
from sfg_dist.data.preparation import prepare
from sfg_dist.data.prepared import Prepared
from sfg_dist.data.queries import read_queries
from sfg_dist.data.row_reader import RowReader
from sfg_dist.data.rows import open_rows
from sfg_dist.data.settings import TableSettings
from sfg_dist.data.table import BUILTIN_NAMES, Table, is_table, open_split, open_table
from sfg_dist.data.transform import Transform

__all__ = [
    "BUILTIN_NAMES",
    "ColumnLook",
    "Prepared",
    "RowReader",
    "Table",
    "TableLook",
    "TableSettings",
    "TextFormat",
    "Transform",
    "is_table",
    "look_at",
    "open_rows",
    "open_split",
    "open_table",
    "prepare",
    "read_queries",
]
