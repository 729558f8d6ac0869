"""Eight float32 numbers as one value inside numba functions: loads, stores, arithmetic, minima and powers of two.

LLVM maps a vector of eight to what the machine has: one AVX register, two of SSE or NEON, half of AVX-512. So the speed
of the kernels does not depend on an automatic vectoriser.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Generator, Sequence
from functools import cache, partial
from importlib import resources
from typing import Any, ClassVar

from llvmlite import ir
from numba.core import cgutils, config, types
from numba.core.codegen import get_host_cpu_features
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from sfg_dist.job import kernel_cache

LANES = 8
# Polynomial of 2^f on [-1/2, 1/2], highest power first: least largest relative error, 1.1e-7 in float32.
_EXP2 = (1.32647099e-3, 9.67150740e-3, 5.55073358e-2, 0.240222424, 0.693147004, 1.0)
_ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the lowest bits
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_FLAGS = ("contract", "nsz", "arcp", "reassoc")


def has_avx512() -> bool:
    """Whether compiled code may use AVX-512; NUMBA_CPU_FEATURES can forbid it."""
    features = getattr(config, "CPU_FEATURES", None)  # numba makes its settings as it is imported
    if features is None:
        features = get_host_cpu_features()  # heeds NUMBA_ENABLE_AVX, as the code generator does
    return "+avx512f" in features.split(",")


def cached_njit(function: Callable[..., Any]) -> Any:
    """``njit`` whose compiled code is kept on disk until one of the kernels' modules changes.

    Numba looks at the function's own file only, and would keep code that was made of another file's old text.
    """
    dispatcher = kernel_cache.cached_njit(nogil=True, error_model="numpy")(function)
    if (index := kernel_cache.cache_file(dispatcher)) is not None:
        index._source_stamp = _sources()
    return dispatcher


@cache
def _sources() -> str:
    names: tuple[str, ...] = ("simd", "leaf_sums", "kernels", "nodes", "traversal", "wide_sums")
    names += ("normal_laws", "normal_series", "normal_rows")
    folder = resources.files("sfg_dist.flow.posterior.cpu")
    return hashlib.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in names)).hexdigest()


class Vector(types.Type):
    """Numba's name for the type."""

    def __init__(self) -> None:
        super().__init__(name="float32x8")


vector = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, front_end_type: Any) -> None:
        super().__init__(manager, front_end_type, _VECTOR)


# The functions that emit code work for vectors of any width; leaf_sums and wide_sums build their loops from them.


def constant(value: float, width: int = LANES) -> ir.Constant:
    """The same float in every place."""
    return ir.Constant(ir.VectorType(_FLOAT, width), [ir.Constant(_FLOAT, value)] * width)


def _integers(value: int, width: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(_INT, width), [ir.Constant(_INT, value)] * width)


def spread(builder: Any, scalar: Any, width: int = LANES) -> Any:
    """A scalar value in every place."""
    undefined = ir.Constant(ir.VectorType(_FLOAT, width), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, _integers(0, width))


def call(builder: Any, name: str, *arguments: Any) -> Any:
    """LLVM's function ``name`` for vectors of the arguments' width."""
    kind = arguments[0].type
    function_type = ir.FunctionType(kind, [kind] * len(arguments))
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.{name}.v{kind.count}f32")
    return builder.call(function, arguments, fastmath=_FLAGS)


def compare(builder: Any, sign: str, a: Any, b: Any) -> Any:
    """The larger (">") or smaller ("<") of two, place by place; b where they do not compare."""
    return builder.select(builder.fcmp_ordered(sign, a, b), a, b)


def exp2_steps(builder: Any, values: Sequence[Any]) -> Generator[None, None, list[Any]]:
    """Emit 2^y of several vectors a step at a time; y is clamped to -126 from below and must be less than 128.

    A caller puts other instructions between the steps, which the processor can do while it waits.
    """
    width = values[0].type.count
    # No flags on these sums and differences: reassociation would undo the reduction.
    values = [compare(builder, ">", y, constant(-126.0, width)) for y in values]
    shifted = [builder.fadd(y, constant(_ROUND, width)) for y in values]
    yield
    wholes = [builder.fsub(s, constant(_ROUND, width)) for s in shifted]
    fractions = [builder.fsub(y, whole) for y, whole in zip(values, wholes, strict=True)]
    yield
    powers = [constant(_EXP2[0], width)] * len(values)
    for coefficient in _EXP2[1:]:
        term = constant(coefficient, width)
        powers = [call(builder, "fmuladd", p, f, term) for p, f in zip(powers, fractions, strict=True)]
        yield
    if width == 16 and has_avx512():  # which adds to an exponent in one instruction
        return [_scale_by_powers(builder, p, whole) for p, whole in zip(powers, wholes, strict=True)]
    integers = ir.VectorType(_INT, width)
    bits = [builder.shl(builder.bitcast(s, integers), _integers(23, width)) for s in shifted]
    sums = [builder.add(builder.bitcast(p, integers), b) for p, b in zip(powers, bits, strict=True)]
    return [builder.bitcast(total_bits, ir.VectorType(_FLOAT, width)) for total_bits in sums]


def _scale_by_powers(builder: Any, value: Any, whole: Any) -> Any:
    kind, mask = value.type, ir.IntType(16)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind, kind, kind, mask, _INT]), "llvm.x86.avx512.mask.scalef.ps.512"
    )
    current_rounding = ir.Constant(_INT, 4)
    return builder.call(function, [value, whole, constant(0.0, 16), ir.Constant(mask, -1), current_rounding])


def finish(steps: Generator[None, None, list[Any]]) -> list[Any]:
    """Run the remaining steps and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return list(end.value)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, place: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), _VECTOR.as_pointer())


def _float_array(kind: Any) -> bool:
    return isinstance(kind, types.Array) and kind.dtype == types.float32 and kind.ndim == 1 and kind.layout == "C"


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


def _emitting(emit: Callable[..., Any]) -> Callable[..., Any]:
    """Code for numba that is what ``emit(builder, *arguments)`` emits."""
    return lambda context, builder, signature, arguments: emit(builder, *arguments)


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """One number in all eight places."""
    return vector(types.float32), _emitting(spread)


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c."""
    return vector(vector, vector, vector), _emitting(lambda builder, a, b, c: call(builder, "fmuladd", a, b, c))


@intrinsic
def root(typing_context: Any, a: Any) -> Any:
    """Square roots."""
    return vector(vector), _emitting(lambda builder, a: call(builder, "sqrt", a))


@intrinsic
def larger(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of two, place by place."""
    return vector(vector, vector), _emitting(lambda builder, a, b: compare(builder, ">", a, b))


@intrinsic
def smaller(typing_context: Any, a: Any, b: Any) -> Any:
    """The smaller of two, place by place."""
    return vector(vector, vector), _emitting(lambda builder, a, b: compare(builder, "<", a, b))


@intrinsic
def where_below(typing_context: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """``yes`` where a <= b, else ``no``."""

    def emit(builder: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<=", a, b), yes, no)

    return vector(vector, vector, vector, vector), _emitting(emit)


@intrinsic
def exp2(typing_context: Any, y: Any) -> Any:
    """2^y for -126 <= y <= 126, clamped to that range, to 2e-7 relative."""

    def emit(builder: Any, y: Any) -> Any:
        return finish(exp2_steps(builder, [compare(builder, "<", y, constant(126.0))]))[0]

    return vector(vector), _emitting(emit)


@intrinsic
def bits_below(typing_context: Any, a: Any, b: Any) -> Any:
    """Bit i says whether a < b in place i."""

    def emit(builder: Any, a: Any, b: Any) -> Any:
        bits = builder.bitcast(builder.fcmp_ordered("<", a, b), ir.IntType(LANES))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(vector, vector), _emitting(emit)


def fold(builder: Any, value: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Combine all places into one, by halves, in the same order on every machine."""
    count = value.type.count
    undefined, width = ir.Constant(value.type, ir.Undefined), count
    while width > 1:
        width //= 2
        mask = ir.Constant(ir.VectorType(_INT, count), [ir.Constant(_INT, (i + width) % count) for i in range(count)])
        value = combine(value, builder.shuffle_vector(value, undefined, mask))
    return builder.extract_element(value, ir.Constant(_INT, 0))


@intrinsic
def total(typing_context: Any, a: Any) -> Any:
    """The sum of the eight."""
    return types.float32(vector), _emitting(lambda builder, a: fold(builder, a, lambda x, y: builder.fadd(x, y)))


@intrinsic
def least(typing_context: Any, a: Any) -> Any:
    """The smallest of the eight."""
    return types.float32(vector), _emitting(lambda builder, a: fold(builder, a, partial(compare, builder, "<")))


def _define(sign: Any, method: str) -> None:
    @infer_global(sign)
    class _Operator(ConcreteTemplate):
        cases: ClassVar = [signature(vector, vector, vector)]
        # Asked before the operators of numba's own types: to ask all of these first took half of the time of a kernel
        # such as ``nodes.bound_nodes``.
        metadata: ClassVar = {"target": "cpu"}

    @lower_builtin(sign, vector, vector)
    def _combine(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, method)(*arguments, flags=("contract", "nsz"))


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
_define(operator.truediv, "fdiv")
