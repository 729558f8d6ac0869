"""What a plan must be when it is read: its fields, and what of them must fit together."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from sfg_dist.job.errors import DocumentError
from sfg_dist.job.reader import check_fields
from sfg_dist.job.words import shown

_SIZE = range(1, 2**53)
_CERTIFICATE = {
    "seed": int, "quantile?": float, "confidence": float, "tolerance": float, "beta_sq": [float], "thresholds": [float],
    "num_fresh": range(2**53), "num_over?": [int], "largest": float, "expected?": [float],
    "multiples?": [float], "shares?": [float], "labels_over?": [int],
}  # fmt: skip
_FIELDS = {
    "identity": {
        "labels": {
            "batch_size": _SIZE, "direction?": {"decode", "encode", "both"}, "seed?": int,
            "gpu_batch_size?": (_SIZE, None), "time_grid?": str, "tolerance?": float,
            "t_min?": (float, {"auto"}), "num_evaluations?": range(1, 100_001),
            "certificate?": {"measured"},
        },
        "data?": {"condition?": [str]}, "transform?": dict, "blur?": {"t_min": float}, "sigma_data?": float,
        "time_grid?": {str: [float]}, "reference?": str, "table?": str, "queries?": (str, None, bool),
        "debiased?": str,
        "certificate?": {str: _CERTIFICATE},
    },
    "num_pairs": range(1, 2**62), "dim": _SIZE, "shard_rows": _SIZE, "columns": [str], "source": str,
    "versions": {str: str}, "format_version": int, "frame?": str, "has_names?": bool, "run_id": str,
}  # fmt: skip


def check_plan(fields: Mapping[str, Any]) -> None:
    """Refuse fields that are no plan's.

    Raises:
        DocumentError: one is missing, unknown or of another type; or fitted grids and certificates do not fit the
            labels.
    """
    check_fields(fields, _FIELDS, "it")
    if unknown := fields.keys() - {name.removesuffix("?") for name in _FIELDS}:
        raise DocumentError(f"it has a key that this version does not know, {shown(min(unknown))}")
    identity, labels = fields["identity"], fields["identity"]["labels"]
    direction = labels.get("direction")
    directions = {"decode", "encode"} if direction == "both" else {direction}
    for name, word in (("time_grid", "fitted"), ("certificate", "measured")):
        if identity.get(name, {}).keys() != (directions if labels.get(name) == word else set()):
            raise DocumentError(f"identity.{name} is not of the directions of its labels")
    for record in identity.get("certificate", {}).values():
        _check_certificate(record, labels.get("tolerance"))


def _check_certificate(record: Mapping[str, Any], tolerance: float | None) -> None:
    times, thresholds = record["beta_sq"], record["thresholds"]
    if len(times) != len(thresholds) or min(thresholds, default=0) < 0:
        raise DocumentError("a certificate has not one threshold of 0 or more for each time")
    expected = record.get("expected", [1.0] * len(times))
    if len(expected) != len(times) or min(expected, default=1) <= 0:
        raise DocumentError("a certificate has not one expected error above 0 for each time")
    if any(after >= before for before, after in pairwise(times)):
        raise DocumentError("a certificate has times that do not fall")
    if record["tolerance"] != tolerance:
        raise DocumentError("a certificate is of another tolerance than its labels")
