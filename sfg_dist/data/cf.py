"""What the attributes of an array say of its values, by the CF conventions of netCDF: packing and missing values.

    value = raw * scale_factor + add_offset

Values equal to ``_FillValue`` or ``missing_value``, and those outside ``valid_range`` (or ``valid_min``,
``valid_max``), are missing. These attributes are compared with the stored number, not with the value.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.errors import DataError

MEANINGS = ("units", "flag_meanings")  # attributes of text
KEYS = ("_FillValue", "missing_value", "valid_range", "valid_min", "valid_max", "scale_factor", "add_offset")
# By type, what netCDF's library puts where nothing was written, unless _FillValue says otherwise.
NETCDF_FILLS = {
    "i2": -32767,
    "u2": 65535,
    "i4": -2147483647,
    "u4": 4294967295,
    "i8": -9223372036854775806,
    "u8": 18446744073709551614,
    "f4": 9.969209968386869e36,
    "f8": 9.969209968386869e36,
}


@dataclass(frozen=True)
class Packing:
    """How stored numbers stand for values."""

    label: str  # of the array, for messages
    scale: float  # of the values
    offset: float  # of the values
    fills: tuple[float | int, ...]  # stored numbers that stand for missing values
    low: float  # of the range of valid values, infinite where there is none
    high: float  # likewise
    is_unpacked_range: bool  # whether that range is one of values, not of stored numbers
    is_scaled: bool  # whether values are other numbers than those stored
    sign: str  # "u" or "i" where integers are to be read without or with a sign, else ""
    words: tuple[str, ...]  # the attributes that were used

    def unpack(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The values: scaled ones float64, others of the type that is stored; missing ones NaN, or masked integers."""
        if self.sign and stored.dtype.kind in "iu":
            stored = stored.view(stored.dtype.str.replace(stored.dtype.kind, self.sign))
        is_missing = np.zeros(stored.shape, dtype=bool)
        for fill in self.fills:
            is_missing |= stored == _as_stored(fill, stored.dtype, self.sign)
        if not self.is_unpacked_range:
            is_missing |= (stored < self.low) | (stored > self.high)
        if not self.is_scaled and stored.dtype.kind in "iu":
            return np.ma.masked_array(stored, is_missing) if is_missing.any() else stored
        if not self.is_scaled and stored.dtype.kind == "f":
            return np.where(is_missing, stored.dtype.type(np.nan), stored) if is_missing.any() else stored
        values = stored.astype(np.float64)
        if stored.dtype.kind in "iu" and stored.dtype.itemsize == 8 and np.any(np.abs(values[~is_missing]) > 2.0**53):
            raise DataError(f"{self.label} holds integers beyond 2^53 beside its attributes: float64 rounds them")
        if self.scale != 1.0:
            values *= self.scale
        if self.offset != 0.0:
            values += self.offset
        if self.is_unpacked_range:
            is_missing |= (values < self.low) | (values > self.high)
        values[is_missing] = np.nan
        return values

    def is_missing(self, stored: Any) -> bool:
        """Whether one stored value is missing."""
        value = self.unpack(np.atleast_1d(np.asarray(stored)))
        return bool(np.ma.getmaskarray(value)[0] or np.isnan(value[0]))


def packing_of(label: str, attributes: Mapping[str, Any], dtype: Any, fill: Any = None) -> Packing | None:
    """The packing that an array's attributes describe, None where they describe none.

    ``dtype`` is that of the stored numbers. ``fill`` is the one that stands for a missing value where the attributes
    name none. ``label`` names the array in messages.
    """
    found = {key: _numbers(label, key, attributes[key]) for key in KEYS if attributes.get(key) is not None}
    if "_FillValue" not in found and fill is not None:
        found["_FillValue"] = [fill]
    # "true" is written where a format has no unsigned integers, and "false" where it has no signed bytes.
    sign = {"true": "u", "false": "i"}.get(_text(attributes.get("_Unsigned")).lower(), "")
    sign = sign if {"u": "i", "i": "u"}.get(sign) == np.dtype(dtype).kind else ""
    if not found and not sign:
        return None
    low, high = (
        found.get("valid_range", [-np.inf, np.inf])[:2]
        if len(found.get("valid_range", [0, 0])) > 1
        else (-np.inf, np.inf)
    )
    low, high = found.get("valid_min", [low])[0], found.get("valid_max", [high])[0]
    if low > high:
        raise DataError(
            f"{label}: its valid values run from {low} to {high}, so no value is valid: mend its attributes"
        )
    for key in ("scale_factor", "add_offset"):
        values = found.get(key, [1.0])
        if len(values) > 1 or not np.isfinite(values[0]) or (key == "scale_factor" and values[0] == 0):
            shown = ", ".join(map(str, values))
            raise DataError(f"{label}: its attribute {key} is {shown}: expected one finite number; mend its attributes")
    scales = "scale_factor" in found or "add_offset" in found
    bounds = [found[key][0] for key in ("valid_range", "valid_min", "valid_max") if key in found]
    words = [key for key in KEYS if key in found and key in attributes] + ["_Unsigned"] * bool(sign)
    return Packing(
        label=label,
        scale=float(found.get("scale_factor", [1.0])[0]),
        offset=float(found.get("add_offset", [0.0])[0]),
        fills=tuple(value for key in ("_FillValue", "missing_value") for value in found.get(key, ())),
        low=low,
        high=high,
        is_scaled=scales,
        is_unpacked_range=scales and np.dtype(dtype).kind in "iu" and any(isinstance(bound, float) for bound in bounds),
        sign=sign,
        words=tuple(words),
    )


def unread_words(attributes: Mapping[str, Any]) -> list[str]:
    """What attributes say of numbers that is not read, in words: the day that they count from, and their meanings."""
    firsts = (np.asarray(attributes.get(key, ""), dtype=object).reshape(-1)[:1].tolist() for key in MEANINGS)
    units, meanings = (_text(first[0]) if first and isinstance(first[0], str | bytes) else "" for first in firsts)
    words = [f"numbers of {units[:60]!r}"] if " since " in units else []
    return words + ([f"numbers without their meanings ({meanings[:60]})"] if meanings else [])


def _as_stored(fill: float | int, dtype: Any, sign: str) -> Any:
    """A fill value as the array holds it: rounded to float32, or with the sign taken off or put on."""
    if dtype.kind == "f":
        return dtype.type(fill)
    if dtype.kind == "u" and fill < 0:
        return int(fill) % (1 << (8 * dtype.itemsize))
    if sign == "i" and dtype.kind == "i" and np.iinfo(dtype).max < fill <= 2 * np.iinfo(dtype).max + 1:
        return int(fill) - (1 << (8 * dtype.itemsize))
    return fill


def _numbers(label: str, key: str, value: Any) -> list[float | int]:
    if isinstance(value, (str, bytes)):
        value = _of_text(_text(value))
    numbers = np.asarray(value).reshape(-1)
    if numbers.dtype.kind not in "iufb" or not len(numbers):
        raise DataError(
            f"{label}: its attribute {key} is {value!r}: expected a number; mend the attribute, or remove it"
        )
    found: list[float | int] = numbers.tolist()
    return found


def _of_text(text: str) -> Any:
    """A number in an attribute of text: a number that JSON cannot write, or a fill value of xarray in Zarr 3."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return text
    return np.frombuffer(raw, "<f8")[0] if len(raw) == 8 else text


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size else ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str("" if value is None else value)
