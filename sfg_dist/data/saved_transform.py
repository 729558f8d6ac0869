"""Reads what ``Transform.to_arrays`` and ``Transform.to_metadata`` wrote, and checks that it is a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.bounds import FREE
from sfg_dist.data.coding import Coding, codings_from_arrays
from sfg_dist.data.column_type import FLOAT, ColumnType
from sfg_dist.data.dependencies import Lookup, lookups_from_arrays
from sfg_dist.data.fitting import KINDS
from sfg_dist.data.quantile import Curve, curves_from_arrays
from sfg_dist.data.tails import MOST_SHAPE
from sfg_dist.job.errors import DataError
from sfg_dist.job.reader import check_fields

METADATA = {"kind": set(KINDS), "columns": [str], "types?": [dict]}
# The shape of each array of a saved map, for one flow column.
SHAPES: dict[str, tuple[int, ...]] = {
    "steps": (),
    "offsets": (),
    "cell_ranges": (2,),
    "origins": (),
    "bounds": (2,),
    "location": (),
    "scale": (),
    "tails": (2, 2),
}


def saved_fields(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the saved ``Transform``.

    Raises:
        DataError: an array is missing or does not fit the others, or the words are not those of a transform.
    """
    try:
        check_fields(metadata, METADATA, "its words")
        kind, columns = metadata["kind"], tuple(metadata["columns"])
        types = tuple(ColumnType.from_dict(words) for words in metadata.get("types", ()))  # version 0.1.0 had none
        fields = {"constants": np.array(arrays["constants"], dtype=np.float64)}
        dim = int(np.isnan(fields["constants"]).sum())
        # not in models of 0.1.0
        later = {"origins": np.zeros(dim), "bounds": np.tile(FREE, (dim, 1)), "tails": np.zeros((dim, 2, 2))}
        for name in SHAPES:
            array = arrays.get(name, later[name]) if name in later else arrays[name]
            if array.dtype != np.float64:
                raise DataError(f"the saved transform is damaged: {name} is {array.dtype}, expected float64")
            fields[name] = np.array(array)
        curves = curves_from_arrays(arrays) if kind == "quantile" else ()
        codings = codings_from_arrays(arrays, dim)
        lookups = lookups_from_arrays(arrays, fields["constants"])
    except KeyError as error:
        raise DataError(f"the saved transform has no {error.args[0]!r}: it is damaged") from None
    except DataError:
        raise
    except (TypeError, ValueError) as error:  # a DocumentError is one of them
        raise DataError(f"the saved transform is damaged: {error}") from None
    _check_saved(kind, len(columns), types, fields, curves)
    _check_codes(types or (FLOAT,) * len(columns), fields["constants"], codings, lookups)
    return {
        "kind": kind,
        "columns": columns,
        "curves": curves,
        "types": types,
        "codings": codings,
        "lookups": lookups,
        **fields,
    }


def _check_saved(
    kind: str,
    num_columns: int,
    types: Sequence[ColumnType],
    fields: Mapping[str, NDArray[Any]],
    curves: Sequence[Curve],
) -> None:
    """Refuse arrays of a saved map that do not fit each other."""
    dim = int(np.isnan(fields["constants"]).sum())
    shapes = {"constants": (num_columns,)} | {name: (dim, *shape) for name, shape in SHAPES.items()}
    wrong = ""
    if types and len(types) != num_columns:
        wrong = f"{len(types)} types for {num_columns} columns"
    for name, array in fields.items():
        if array.shape != shapes[name]:
            wrong = wrong or f"{name} has shape {array.shape}, expected {shapes[name]}"
    if kind == "quantile" and len(curves) != dim:
        wrong = wrong or f"kind {kind!r} with {len(curves)} curves for {dim} columns"
    for name in ("bounds", "cell_ranges") if not wrong else ():
        if not (fields[name][:, 0] <= fields[name][:, 1]).all():
            wrong = f"{name} that are no ranges"
    finite = all(np.isfinite(fields[name]).all() for name in SHAPES if name != "bounds")
    if not finite or np.isinf(fields["constants"]).any():
        wrong = wrong or "a number is not finite"
    if (fields["steps"] < 0).any() or (fields["scale"] <= 0).any() or (fields["tails"] < 0).any():
        wrong = wrong or "a step or a tail below 0, or a scale of 0"
    if not wrong:
        scales, shapes_of_tails = fields["tails"][..., 0], fields["tails"][..., 1]
        with np.errstate(divide="ignore", over="ignore"):
            is_law = (scales > 0) & np.isfinite(1 / scales) & (shapes_of_tails <= MOST_SHAPE)
        if not (is_law | ((scales == 0) & (shapes_of_tails == 0))).all():
            wrong = f"a tail whose scale is too small, or whose shape is above {MOST_SHAPE} or has no scale"
    if wrong:
        raise DataError(f"the saved transform is damaged: {wrong}")


def _check_codes(
    types: Sequence[ColumnType], constants: NDArray[Any], codings: Sequence[Coding], lookups: Sequence[Lookup]
) -> None:
    """Refuse codes that are none of their column's categories, and places of categories that a column has not."""
    wrong = ""
    flow = [type_ for type_, is_drawn in zip(types, np.isnan(constants), strict=True) if is_drawn]
    for type_, coding in zip(flow, codings, strict=True):
        if (0 if coding.places is None else len(coding.places)) != len(type_.categories):
            wrong = f"a column of {len(type_.categories)} categories has not one place for each"
    numbers = [(place, constants[[place]]) for place in range(len(types))]
    numbers += [(lookup.by, lookup.keys) for lookup in lookups] + [(lookup.column, lookup.values) for lookup in lookups]
    for place, codes in numbers:
        known, number = codes[~np.isnan(codes)], len(types[place].categories)
        if types[place].is_coded and not ((known == np.floor(known)) & (known >= 0) & (known < number)).all():
            wrong = f"a code of a column of {number} categories is none of theirs"
    if wrong:
        raise DataError(f"the saved transform is damaged: {wrong}")
