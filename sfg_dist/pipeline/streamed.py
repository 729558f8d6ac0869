"""A reference straight from a table on disk or in a bucket; its blocks are read again in each loop over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from sfg_dist.data.rows import open_rows
from sfg_dist.flow import block_ranges
from sfg_dist.flow.posterior.reference import center_of, centred_keys
from sfg_dist.flow.posterior.reference_block import ReferenceBlock
from sfg_dist.flow.posterior.streaming import StreamedReference
from sfg_dist.flow.spread import ColumnSpread, SigmaData, resolve_sigma_data
from sfg_dist.job.errors import DataError
from sfg_dist.job.words import GIB


def open_reference(
    source: str | Path,
    *,
    columns: Sequence[str] | None = None,
    array: str = "X",
    device: torch.device | str = "cpu",
    memory_gib: float | None = None,
    sigma_data: SigmaData = "auto",
) -> StreamedReference:
    """A table as the reference of ``label_latents``, ``score`` and ``log_density``, without holding it in memory.

    The rows are taken as they stand: no transform, no split. The result is that of ``Reference`` over the same rows.
    The table must stay where it is as long as the reference is used.

    Args:
        source: a .parquet, .zarr or local .npy table, a path or an ``s3://`` URL.
        columns: the columns to take, in order; None is all.
        array: the array to take of a .zarr group.
        device: where the work is done.
        memory_gib: memory for blocks of 2**20 rows that stay once they were read. The others are read again, and their
            clusters built again, for every evaluation. None keeps the block only if it is a single one.
        sigma_data: the unit of the flow, as for ``Reference``.

    Raises:
        DataError: the table cannot be read by ranges of rows, or a row has a missing value.

    Examples:
        >>> reference = sfg_dist.open_reference("table.parquet", memory_gib=8)      # doctest: +SKIP
        >>> labels = sfg_dist.label_latents(latents, reference)                     # doctest: +SKIP
    """
    where = torch.device(device)
    with open_rows(source, array=array, columns=columns) as reader:
        num_rows, dim = reader.num_rows, len(reader.columns)
        types = dict(zip(reader.columns, reader.types, strict=True))
    for name, type_ in types.items():
        if not type_.is_plain:
            raise DataError(
                f"{source}: column {name!r} holds {type_.words} that are no coordinates as they stand: leave it out"
            )
    if not num_rows:
        raise DataError(f"{source} has no rows")

    def rows(start: int, stop: int) -> torch.Tensor:
        with open_rows(source, array=array, types=types) as reader:
            return torch.from_numpy(reader.read(start, stop)).to(where)

    tally = ColumnSpread()
    try:
        center = center_of(lambda start, stop: tally.add(rows(start, stop)), num_rows)
    except ValueError as error:
        raise DataError(f"{source}: {error}; a reference needs complete rows") from error
    scale = resolve_sigma_data(sigma_data, tally.result())
    ranges = block_ranges(num_rows)
    # Keys, the same rows in leaves, and about as much again for the clusters' bounds and moments.
    block_bytes = 3 * 4 * (dim + 1) * (ranges[0][1] - ranges[0][0])
    num_kept = 1 if len(ranges) == 1 else int((memory_gib or 0.0) * GIB / block_bytes)
    return StreamedReference(
        lambda number: ReferenceBlock(centred_keys(rows(*ranges[number]), center, torch.float32, scale)),
        center=center,
        num_reference=num_rows,
        device=where,
        num_kept=num_kept,
        scale=scale,
        spreads=tally.result(),
    )
