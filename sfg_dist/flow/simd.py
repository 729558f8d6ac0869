"""Eight float32 numbers as one value inside numba functions: loads, stores, arithmetic, minima and powers of two.

LLVM maps a vector of eight to what the machine has: one AVX register, two of SSE or NEON, half of AVX-512. So the speed
of the kernels does not hang on what an automatic vectoriser makes of a loop.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

LANES = 8
# Polynomial of 2^f on [-1/2, 1/2]: relative error 2e-7.
_EXP2 = (
    1.535336188319500e-4,
    1.339887440266574e-3,
    9.618437357674640e-3,
    5.550332471162809e-2,
    2.402264791363012e-1,
    6.931472028550421e-1,
    1.0,
)
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_FLAGS = ("contract", "nsz", "arcp", "reassoc")


class Vector(types.Type):
    """Numba's name for the type."""

    def __init__(self) -> None:
        super().__init__(name="float32x8")


vector = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, front_end_type: Any) -> None:
        super().__init__(manager, front_end_type, _VECTOR)


def _splat_constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, value)] * LANES)


def _int_splat(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [ir.Constant(_INT, value)] * LANES)


def _splat(builder: Any, scalar: Any) -> Any:
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), _int_splat(0))


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(arguments))
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32")
    return builder.call(function, arguments, fastmath=_FLAGS)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, place: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), _VECTOR.as_pointer())


def _float_array(kind: Any) -> bool:
    return isinstance(kind, types.Array) and kind.dtype == types.float32 and kind.ndim == 1


@intrinsic
def load(typing_context: Any, array: Any, place: Any) -> Any:
    """Eight numbers of a flat float32 array from ``place`` on."""
    if not _float_array(array):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], *arguments), align=4)

    return vector(array, types.intp), generate


@intrinsic
def store(typing_context: Any, array: Any, place: Any, value: Any) -> Any:
    """Write eight numbers to a flat float32 array from ``place`` on."""
    if not _float_array(array) or not isinstance(value, Vector):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _pointer(context, builder, signature.args[0], *arguments[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """One number in all eight places."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0])

    return vector(types.float32), generate


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "fmuladd", *arguments)

    return vector(vector, vector, vector), generate


@intrinsic
def root(typing_context: Any, a: Any) -> Any:
    """Square roots."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "sqrt", *arguments)

    return vector(vector), generate


def _comparison(builder: Any, sign: str, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(sign, a, b), a, b)


@intrinsic
def larger(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of two, place by place."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _comparison(builder, ">", *arguments)

    return vector(vector, vector), generate


@intrinsic
def smaller(typing_context: Any, a: Any, b: Any) -> Any:
    """The smaller of two, place by place."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _comparison(builder, "<", *arguments)

    return vector(vector, vector), generate


@intrinsic
def where_below(typing_context: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """``yes`` where a <= b, else ``no``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, yes, no = arguments
        return builder.select(builder.fcmp_ordered("<=", a, b), yes, no)

    return vector(vector, vector, vector, vector), generate


@intrinsic
def exp2(typing_context: Any, y: Any) -> Any:
    """2^y for -126 <= y <= 126, clamped to that range, to 2e-7 relative."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        y = _comparison(builder, ">", arguments[0], _splat_constant(-126.0))
        y = _comparison(builder, "<", y, _splat_constant(126.0))
        whole = _call(builder, "nearbyint", y)
        fraction = builder.fsub(y, whole)  # no flags: reassociation would undo the reduction
        value = _splat_constant(_EXP2[0])
        for coefficient in _EXP2[1:]:
            value = _call(builder, "fmuladd", value, fraction, _splat_constant(coefficient))
        bits = builder.shl(builder.add(builder.fptosi(whole, _INTS), _int_splat(127)), _int_splat(23))
        return builder.fmul(value, builder.bitcast(bits, _VECTOR))

    return vector(vector), generate


def _fold(builder: Any, value: Any, combine: Any) -> Any:
    """All eight into one, by halves: a fixed order, whatever the machine."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    for width in (4, 2, 1):
        mask = ir.Constant(_INTS, [ir.Constant(_INT, (i + width) % LANES) for i in range(LANES)])
        value = combine(value, builder.shuffle_vector(value, undefined, mask))
    return builder.extract_element(value, ir.Constant(_INT, 0))


@intrinsic
def total(typing_context: Any, a: Any) -> Any:
    """The sum of the eight."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _fold(builder, arguments[0], lambda a, b: builder.fadd(a, b))

    return types.float32(vector), generate


@intrinsic
def least(typing_context: Any, a: Any) -> Any:
    """The smallest of the eight."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _fold(builder, arguments[0], lambda a, b: _comparison(builder, "<", a, b))

    return types.float32(vector), generate


def _define(sign: Any, method: str) -> None:
    @intrinsic
    def combine(typing_context: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, method)(*arguments, flags=("contract", "nsz"))

        return vector(vector, vector), generate

    @overload(sign, inline="always")
    def _overload(a, b):  # type: ignore[no-untyped-def]  # numba compares the signatures, annotations included
        if isinstance(a, Vector) and isinstance(b, Vector):
            return lambda a, b: combine(a, b)
        return None


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
