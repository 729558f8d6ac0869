"""Cells: the fit of one method with one seed, and what is kept of it. A finished cell is never made again.

compare/
    cells/NAME.json                 what was found, under the keys that decide it; written last
    cells/NAME.ROW.npy              samples in the user's units, one file a row of the table
    selection/NAME.json             which configuration a peer takes, likewise
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.errors import DocumentError
from sfg_dist.job.reader import LONG_BYTES, read_json
from sfg_dist.store import Location

FOLDER = "compare"
_FIELDS = {"keys": object, "found": dict, "tables?": [str]}


class Records:
    """The finished parts of a comparison in an output directory, local or in an object store.

    Args:
        output: the output directory.
    """

    def __init__(self, output: Location) -> None:
        self.output = output

    def load(self, name: str, keys: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was found under these very keys; None where it was not, or was by other keys, or not to the end.

        Args:
            name: of the record, such as "cells/nsf_0".
            keys: all that decides the result.
        """
        try:
            content = self.output.read(f"{FOLDER}/{name}.json", LONG_BYTES)
            document = read_json(content, name, _FIELDS, max_bytes=LONG_BYTES, allow_nan=True)
        except DocumentError:
            return None
        if document["keys"] != _as_read(keys):
            return None
        found: dict[str, Any] = document["found"]
        whole = all(self.output.exists(self._table(name, row)) for row in document.get("tables", ()))
        return found if whole else None

    def save(
        self,
        name: str,
        keys: Mapping[str, Any],
        found: Mapping[str, Any],
        tables: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> None:
        """Keep what was found; an interrupted call keeps nothing.

        Args:
            name: of the record.
            keys: all that decides the result.
            found: what JSON can hold.
            tables: samples by row of the table.
        """
        self.output.delete(f"{FOLDER}/{name}.json")
        for row, rows in (tables or {}).items():
            content = io.BytesIO()
            np.save(content, rows, allow_pickle=False)
            self.output.write(self._table(name, row), content.getvalue())
        document = {"keys": _as_read(keys), "tables": list(tables or {}), "found": found}
        self.output.write(f"{FOLDER}/{name}.json", json.dumps(document, indent=1).encode())

    def table(self, name: str, row: str) -> NDArray[np.float64]:
        """Samples of a row of the table."""
        content = self.output.read(self._table(name, row))
        assert content is not None, "load said that it is there"
        rows: NDArray[np.float64] = np.load(io.BytesIO(content), allow_pickle=False)
        return rows

    def _table(self, name: str, row: str) -> str:
        return f"{FOLDER}/{name}.{row}.npy"


def _as_read(keys: Mapping[str, Any]) -> Any:
    """As JSON gives them back."""
    return json.loads(json.dumps(keys, sort_keys=True))
