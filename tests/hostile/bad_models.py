"""Models and checkpoints that do not fit their own shapes, with names, sizes and numbers of a stranger's choice."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from bad_documents import ESCAPES, STEP, change, put, remove, write
from harness import Case, World
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
    *_documents_of_a_model(),
    *_headers(),
    *_checkpoints(),
    Case("history of other lines", _history, ("train_on", "train"), "checkpoints"),
]
