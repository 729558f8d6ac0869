"""Models and checkpoints that do not fit their own shapes, with names, sizes and numbers of a stranger's choice."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from bad_documents import ESCAPES, STEP, change, put, remove, write
from harness import REFUSED, Case, World
from safetensors.torch import load, save

MODEL, STATE = "model/model.safetensors", f"{STEP}/state.safetensors"
FITTED = "checkpoints/fitted.safetensors"
Tensors = dict[str, torch.Tensor]


def change_tensors(key: str, edit: Callable[[Tensors], Any], world: World) -> None:
    """Edit a safetensors file."""
    tensors = load((world.run / key).read_bytes())
    edit(tensors)
    write(world, key, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def to(name: str, value: Any) -> Callable[[Tensors], None]:
    """An edit that puts a tensor, or what a function makes of the one that is there."""
    return lambda tensors: tensors.update({name: value(tensors[name]) if callable(value) else value})


def _as(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.to(dtype)


def _filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.full_like(tensor, value)


def _all(value: Callable[[torch.Tensor], torch.Tensor], prefix: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({n: value(t) for n, t in tensors.items() if n.startswith(prefix)})


def _pairs(columns: list[list[int]], knots: int = 4) -> Callable[[Tensors], None]:
    """Pair maps over columns of a stranger's choice."""

    def edit(tensors: Tensors) -> None:
        number = len(columns)
        shapes = {"centers": (number, 2), "spreads": (number, 2), "shifts": (number, 2, 2), "means": (number, 2)}
        tensors["calibration.pair_columns"] = torch.tensor(columns, dtype=torch.int64)
        tensors["calibration.pair_knots"] = torch.zeros(number, knots, dtype=torch.float64)
        for name, shape in shapes.items():
            tensors[f"calibration.pair_{name}"] = torch.zeros(shape, dtype=torch.float64)

    return edit


def _local(**spoilt: Any) -> Callable[[Tensors], None]:
    """Local maps of three parts of the plane, with some arrays of a stranger's choice."""
    shapes: dict[str, tuple[int, ...]] = {"parts": (3, 2), "width": (1,), "maps": (3, 2, 2), "shifts": (3, 2)}
    shapes |= {"knots": (2, 4), "values": (2, 4)}

    def edit(tensors: Tensors) -> None:
        for name, found in (shapes | spoilt).items():
            is_made = isinstance(found, torch.Tensor)
            tensors[f"calibration.local_{name}"] = found if is_made else torch.ones(found, dtype=torch.float64)

    return edit


def _coded(counts: list[int], places: list[float], missing: list[list[float]]) -> Callable[[Tensors], None]:
    """Codings of the two columns."""
    return lambda tensors: tensors.update({
        "transform.code_counts": torch.tensor(counts), "transform.code_places": torch.tensor(places).double(),
        "transform.missing": torch.tensor(missing).double(),
    })  # fmt: skip


def _looked_up(columns: list[list[int]], keys: list[float]) -> Callable[[Tensors], None]:
    """Lookups of the second column, which the flow does not see."""

    def edit(tensors: Tensors) -> None:
        tensors["transform.constants"] = torch.tensor([float("nan"), 1.0]).double()
        tensors["transform.lookup_columns"] = torch.tensor(columns)
        for name in ("keys", "values"):
            tensors[f"transform.lookup_{name}"] = torch.tensor(keys).double()

    return edit


NAN, FAR = float("nan"), 2**62


def _new_tensors_of_a_model() -> Iterator[Case]:
    """Local maps, codings, lookups and tails."""
    float64 = torch.float64
    for name, edit in {
        "local maps of another plane": _local(parts=(3, 9), shifts=(3, 9), maps=(3, 9, 9)),
        "local maps of fewer parts": _local(maps=(1, 2, 2)),
        "local shifts of one column": _local(shifts=(3, 1)),
        "local knots of one column": _local(knots=(1, 4), values=(1, 4)),
        "fewer local values than knots": _local(values=(2, 1)),
        "local maps without a part": _local(parts=(0, 2), shifts=(0, 2), maps=(0, 2, 2)),
        "local maps without a width": _local(width=torch.zeros(1, dtype=float64)),
        "a local width that is no number": _local(width=torch.full((1,), NAN, dtype=float64)),
        "local widths of each part": _local(width=(3,)),
        "local maps in float32": _local(maps=torch.ones(3, 2, 2)),
        "local knots that fall": _local(knots=torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 2, dtype=float64)),
        "local parts that are no table": _local(parts=(3,)),
        "counts of knots that run over": to("transform.knot_counts", torch.tensor([FAR, FAR, FAR, FAR + 76])),
        "no knots at all": lambda ts: [
            to("transform.constants", torch.ones(2).double())(ts),
            to("transform.knot_counts", torch.zeros(0, dtype=torch.int64))(ts),
            *(to(f"transform.knot_{part}", lambda t: t[:0])(ts) for part in ("values", "scores")),
            *(
                ts.update({key: t[:0]})
                for key, t in list(ts.items())
                if key.startswith("transform.")
                and t.ndim
                and key.split(".")[1]
                in ("steps", "offsets", "cell_ranges", "origins", "bounds", "location", "scale", "tails")
            ),
        ],
        "codes of categories that it has not": _coded([2, 0], [0, 1], [[NAN, NAN]] * 2),
        "counts of categories that run over": _coded([-FAR, FAR + 2], [0, 1], [[NAN, NAN]] * 2),
        "categories at places beyond": _coded([2, 0], [0, 1e300], [[NAN, NAN]] * 2),
        "categories at places that are no numbers": _coded([2, 0], [0, NAN], [[NAN, NAN]] * 2),
        "a missing value of another shape": _coded([0, 0], [], [[NAN, NAN]]),
        "a missing value that is infinite": _coded([0, 0], [], [[float("inf"), 0.0], [NAN, NAN]]),
        "lookups of a column beyond": _looked_up([[7, 0, 2]], [0.0, 1.0]),
        "lookups by a column below": _looked_up([[1, -1, 2]], [0.0, 1.0]),
        "lookups of themselves": _looked_up([[0, 0, 2]], [0.0, 1.0]),
        "lookups without a key": _looked_up([[1, 0, 0]], []),
        "lookups of counts that run over": _looked_up([[1, 0, FAR]] * 4, []),
        "lookups by keys that fall": _looked_up([[1, 0, 2]], [1.0, 0.0]),
        "lookups by keys that are no numbers": _looked_up([[1, 0, 2]], [NAN, NAN]),
        "tails of a shape without end": to("transform.tails", torch.full((2, 2, 2), 1e300, dtype=float64)),
        "tails of a scale near nothing": to("transform.tails", torch.full((2, 2, 2), 5e-324, dtype=float64)),
        "tails of one column": to("transform.tails", torch.zeros(1, 2, 2, dtype=float64)),
        "tails in float32": to("transform.tails", torch.zeros(2, 2, 2)),
    }.items():
        yield Case(f"model with {name}", partial(change_tensors, MODEL, edit), ("draw",), "model", REFUSED)
    width, depth = {"width": 16}, {"depth": 1}
    for name, network in {
        "three experts": {"dim": 2, "experts": 3},
        "a million experts": {"dim": 2, "experts": 2**20},
        "experts in quotes": {"dim": 2, "experts": "4"},
        "true experts": {"dim": 2, "experts": True},
        "experts of blocks of their own": {"dim": 2, "experts": 4, "block": "plain"},
        "experts that are not there": {"dim": 2, "experts": 4, **width, **depth},
        "experts and cells": {"dim": 2, "experts": 4, "cells": [2, 2]},
        "experts of 10^6 columns": {"dim": 10**6, "experts": 64, "width": 10**6},
        "cells of one column": {"dim": 2, "cells": [4]},
        "cells of none": {"dim": 2, "cells": [0, 4]},
        "cells below none": {"dim": 2, "cells": [-4, 4]},
        "cells without end": {"dim": 2, "cells": [2**19, 2**19]},
        "cells in quotes": {"dim": 2, "cells": "44"},
        "cells that are not there": {"dim": 2, "cells": [4, 4], **width, **depth},
    }.items():
        spoil = partial(_document, put("network", value=network))
        yield Case(f"model: {name}", spoil, ("draw",), "model|generator.json", REFUSED)
    plain = {"name": "x", "type": "double", "nullable": True}
    for name, container in {
        "of other columns": {"kind": "arrow", "columns": [plain]},
        "of types that are none": {
            "kind": "arrow",
            "columns": [{**plain, "type": "x" * 10_000}, {**plain, "name": "y"}],
        },
        "of dtypes that are code": {
            "kind": "pandas",
            "columns": [{**plain, "name": name, "dtype": "__import__('os')", "label": name} for name in "xy"],
        },
        "of dictionaries in one another": {
            "kind": "arrow",
            "columns": [
                {
                    **plain,
                    "name": name,
                    "type": "dictionary<values=dictionary<values=string, indices=int8, ordered=0>, "
                    "indices=int8, ordered=0>",
                }
                for name in "xy"
            ],
        },
        "that is a list": [],
        "of a kind of its own": {"kind": "pickle", "columns": []},
    }.items():
        spoil = partial(_document, put("container", value=container))
        yield Case(f"model: a container {name}", spoil, ("draw",), "model|generator.json", REFUSED)


def _tensors_of_a_model() -> Iterator[Case]:
    float64 = torch.float64
    for name, edit in {
        "fewer knots than values": to("calibration.knots", lambda t: t[:, :, :2]),
        "fewer values than knots": to("calibration.values", lambda t: t[:, :, :2]),
        "values of fewer columns": to("calibration.values", lambda t: t[:, :1]),
        "knots and values of one column": _all(lambda t: t[:, :1], "calibration.knots"),
        "calibration of one column": lambda ts: [
            to(f"calibration.{part}", lambda t: t[:, :1])(ts) for part in ("knots", "values")
        ],
        "no rounds": lambda ts: [
            to(f"calibration.{part}", lambda t: t[:0])(ts) for part in ("knots", "values", "centers", "maps", "shifts")
        ],
        "maps of another shape": to("calibration.maps", lambda t: t[:, :1, :1]),
        "centers of fewer rounds": to("calibration.centers", lambda t: t[:1]),
        "knots that are no numbers": to("calibration.knots", _filled(float("nan"))),
        "knots in float16": to("calibration.knots", _as(torch.float16)),
        "knots as integers": to("calibration.knots", _as(torch.int64)),
        "knots as bytes": to("calibration.values", lambda t: torch.zeros(t.shape, dtype=torch.uint8)),
        "no maps": lambda ts: ts.pop("calibration.maps"),
        "a tensor more": to("calibration.more", torch.zeros(2)),
        "pairs of columns beyond": _pairs([[5, 7]]),
        "pairs of columns below": _pairs([[-9, -1]]),
        "pairs of columns of 2^40": _pairs([[2**40, 0]]),
        "pairs of columns in float": to("calibration.pair_columns", torch.zeros(1, 2)),
        "pairs without knots": _pairs([[0, 1]], knots=0),
        "pair means of another shape": to("calibration.pair_means", torch.zeros(3, 2, dtype=float64)),
        "counts of knots below none": to("transform.knot_counts", torch.tensor([-5, 81])),
        "counts of knots without end": to("transform.knot_counts", torch.tensor([2**62, 2**62])),
        "counts of knots of one column": to("transform.knot_counts", torch.tensor([76])),
        "counts of knots in float": to("transform.knot_counts", torch.tensor([38.5, 37.5])),
        "fewer scores than knots": to("transform.knot_scores", lambda t: t[:3]),
        "knots of the transform that are no numbers": to("transform.knot_values", _filled(float("nan"))),
        "a scale of one column": to("transform.scale", lambda t: t[:1]),
        "a scale of nothing": to("transform.scale", _filled(0.0)),
        "a scale of bools": to("transform.scale", lambda t: torch.ones(2, dtype=torch.bool)),
        "bounds the other way round": to("transform.bounds", lambda t: t.flip(-1).flip(0)),
        "bounds of another shape": to("transform.bounds", lambda t: t[:, :1]),
        "offsets of three columns": to("transform.offsets", torch.zeros(3, dtype=float64)),
        "no transform": lambda ts: [ts.pop(key) for key in list(ts) if key.startswith("transform.")],
        "weights that are no numbers": _all(_filled(float("nan")), "network."),
        "weights without end": _all(_filled(3e38), "network."),
        "weights of another type": _all(_as(torch.float64), "network."),
        "weights as integers": _all(_as(torch.int32), "network."),
        "weights of another shape": to("network.out.weight", lambda t: t[:, :3]),
        "weights of no shape": to("network.out.weight", torch.tensor(1.0)),
        "no weights": lambda ts: ts.pop("network.out.weight"),
        "names with a terminal's words": to(f"network.{ESCAPES}", torch.zeros(1)),
        "an encoder that no document names": to("encoder.x", torch.zeros(1)),
        "nothing": lambda ts: ts.clear(),
    }.items():
        yield Case(f"model with {name}", partial(change_tensors, MODEL, edit), ("draw",), "model")


def _document(edit: Callable[[dict[str, Any]], Any], world: World) -> None:
    change(world, "model/generator.json", edit)


def _documents_of_a_model() -> Iterator[Case]:
    for name, edit in {
        "a width of 20,000": put("network", "width", value=20_000),  # 1.6 GB of weights that the file does not hold
        "a width of 10^9": put("network", "width", value=10**9),
        "a width of none": put("network", "width", value=0),
        "a width below none": put("network", "width", value=-1),
        "a width in quotes": put("network", "width", value="16"),
        "a width of 16.0": put("network", "width", value=16.0),
        "a depth of 100,000": put("network", "depth", value=100_000),
        "a depth in quotes": put("network", "depth", value="1"),
        "other columns in the network": put("network", "dim", value=3),
        "conditions in the network": put("network", "num_conditions", value=10**9),
        "noise in the network": put("network", "num_noise", value=10**9),
        "an activation that is none": put("network", "activation", value="__import__"),
        "an activation that is a list": put("network", "activation", value=["gelu"]),
        "a block that is none": put("network", "block", value="../x"),
        "a key of its own": put("network", "device", value="meta"),
        "a network that is a list": put("network", value=[]),
        "no network": remove("network"),
        "one name": put("columns", value=["x"]),
        "three names": put("transform", "columns", value=["x", "y", "z"]),
        "names that are numbers": put("transform", "columns", value=[1, 2]),
        "names with a terminal's words": put("transform", "columns", value=[ESCAPES, "y"]),
        "equal names": put("transform", "columns", value=["x", "x"]),
        "types of one column": put("transform", "types", value=[{"kind": "float", "dtype": "float64"}]),
        "types that are none": put("transform", "types", value=[{"kind": "object", "dtype": "O"}] * 2),
        "types that are texts": put("transform", "types", value=["float", "float"]),
        "a type with a zone that is none": put(
            "transform", "types", value=[{"kind": "timestamp", "unit": "ns", "zone": "../../etc/passwd"}] * 2
        ),
        "a transform that is none": put("transform", "kind", value="os.system"),
        "a transform that is a list": put("transform", value=[]),
        "a condition that is no column": put("condition", value=["q"]),
        "a condition of all columns": put("condition", value=["x", "y"]),
        "a condition that is a number": put("condition", value=3),
        "a job that is a list": put("job", value=[]),
        "figures that are a text": put("metrics", value="good"),
        "an encoder that is a list": put("encoder", value=[]),
        "an encoder without end": put(
            "encoder", value={"network": {"dim": 10**6, "width": 10**6, "depth": 3}, "mass": {}}
        ),
        "format 2": put("format", value=2),
        "a format with a terminal's words": put("format", value=ESCAPES),
        "a version that is a list": put("sfg_dist", value=["0.2.0"]),
    }.items():
        yield Case(f"model: {name}", partial(_document, edit), ("draw",), "model|generator.json")


def _header(size: int | None, header: bytes, world: World, *, key: str = MODEL) -> None:
    write(world, key, struct.pack("<Q", len(header) if size is None else size) + header)


def _headers() -> Iterator[Case]:
    entry = '{"dtype": "%s", "shape": %s, "data_offsets": %s}'
    for name, size, header in (
        ("nothing behind its length", 2**62, b""),
        ("a header of 2^40", 2**40, b"{}"),
        ("a depth without end", None, b'{"a":' * 50_000),
        ("offsets beyond its end", None, b'{"a":' + (entry % ("F32", [2**40], [0, 2**42])).encode() + b"}"),
        ("offsets the other way round", None, b'{"a":' + (entry % ("F32", [1], [4, 0])).encode() + b"}1234"),
        ("a type that is none", None, b'{"a":' + (entry % ("O", [1], [0, 4])).encode() + b"}1234"),
        ("a shape below none", None, b'{"a":' + (entry % ("F32", [-1], [0, 4])).encode() + b"}1234"),
        ("a pickle", 7, b"\x80\x04cos\nsystem\n."),
    ):
        for key, command in ((MODEL, "draw"), (FITTED, "train"), (STATE, "train_on")):
            names = "model" if key == MODEL else "checkpoints"
            yield Case(f"{key} of {name}", partial(_header, size, header, key=key), (command,), names)


def _checkpoints() -> Iterator[Case]:
    first = "hidden.0.weight"
    for name, edit in {
        "weights of another shape": to(f"model.{first}", lambda t: t[:3]),
        "an average of another shape": to(f"average.{first}", lambda t: t[:3]),
        "weights that are no numbers": _all(_filled(float("nan")), "model."),
        "a state of another shape": to("optimizer.0.0.exp_avg", lambda t: t[:1]),
        "a state of another type": to("optimizer.0.0.exp_avg", _as(torch.int64)),
        "steps that are a list": to("optimizer.0.0.step", torch.zeros(5)),
        "states beyond": to("optimizer.7.99.momentum", torch.zeros(1)),
        "states with names of their own": to("optimizer.x.y.z", torch.zeros(1)),
        "no weights": lambda ts: [ts.pop(key) for key in list(ts) if key.startswith("model.")],
        "nothing": lambda ts: ts.clear(),
    }.items():
        yield Case(f"checkpoint with {name}", partial(change_tensors, STATE, edit), ("train_on",), "checkpoints")
    for name, edit in {
        "a step in words": put("step", value="x"),
        "a step below none": put("step", value=-5),
        "a step without end": put("step", value=10**30),
        "an epoch in words": put("epoch", value="two"),
        "an epoch of a half": put("epoch", value=1.5),
        "a step in the epoch beyond": put("step_in_epoch", value=10**12),
        "time in words": put("elapsed_s", value="long"),
        "time that is no number": put("elapsed_s", value=float("nan")),
        "a history that is a number": put("history", value=1),
        "a history of texts": put("history", value=["x"]),
        "a history of deep keys": put("history", value=[{"epoch": {}, "step": []}]),
        "no step": remove("step"),
        "keys of its own": put("__init__", value=1),
    }.items():
        spoil = partial(lambda edit, world: change(world, f"{STEP}/progress.json", edit), edit)
        yield Case(f"progress with {name}", spoil, ("train_on",), "checkpoints")
    for name, edit in {
        "a width of 20,000": put("network", "width", value=20_000),
        "a width of 10^9": put("network", "width", value=10**9),
        "a key of its own": put("network", "device", value="meta"),
        "an activation that is none": put("network", "activation", value="eval"),
        "a step in words": put("step", value="x"),
        "a best epoch in words": put("best_epoch", value="x"),
        "a history that is a number": put("history", value=1),
        "a history with a terminal's words": put("history", value=[{"epoch": ESCAPES, "step": 1, "train_loss": 1.0}]),
        "no network": remove("network"),
    }.items():
        spoil = partial(lambda edit, world: change(world, "checkpoints/fitted.json", edit), edit)
        yield Case(f"fit with {name}", spoil, ("train",), "checkpoints")
    for name, edit in {
        "weights of another shape": to("out.weight", lambda t: t[:, :3]),
        "weights that are no numbers": _all(_filled(float("nan")), ""),
        "a tensor more": to("more", torch.zeros(1)),
        "no weights": lambda ts: ts.pop("out.weight"),
    }.items():
        yield Case(f"fitted network with {name}", partial(change_tensors, FITTED, edit), ("train",), "checkpoints")
    yield Case("failure of the fit with a terminal's words", _failure, ("train_on", "refit"), "checkpoints")


def _failure(world: World) -> None:
    (world.run / "checkpoints" / "failed.txt").write_bytes(ESCAPES.encode() + b"\xff" * 2**20)


def _history(world: World) -> None:
    path = world.run / "checkpoints" / "history.jsonl"
    path.write_bytes(b'["x"]\n' + json.dumps({"epoch": ESCAPES, "step": "x"}).encode() + b"\n" + path.read_bytes())


CASES = [
    *_tensors_of_a_model(),
    *_new_tensors_of_a_model(),
    *_documents_of_a_model(),
    *_headers(),
    *_checkpoints(),
    Case("history of other lines", _history, ("train_on", "train"), "checkpoints"),
]
