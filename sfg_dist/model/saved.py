"""Tensors of saved models and checkpoints. They are compared with their document before anything is made of them.

A network is built without memory ("meta") from the document. So the names, shapes and types of its tensors are known
before a number of the file is used. All numbers must be finite. This is needed because compiled code checks no bounds,
and because torch silently spreads a small tensor over a larger one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from sfg_dist.job.errors import DocumentError
from sfg_dist.job.memory import usable_bytes
from sfg_dist.job.reader import check_fields
from sfg_dist.job.words import as_line, shown
from sfg_dist.model.cell_network import CellNetwork, Network
from sfg_dist.model.encoder import Encoder
from sfg_dist.model.expert_network import ExpertNetwork
from sfg_dist.model.likelihood import Mixture
from sfg_dist.model.mlp import ACTIVATIONS, MLP
from sfg_dist.store import Location

COPIES = 3
"""A file of tensors is in memory three times: as bytes, as tensors, and as those of the network."""
_WIDTH, _FEW = range(1, 1 << 20), range(1 << 20)
_NETWORK = {
    "dim": _WIDTH, "width?": _WIDTH, "depth?": range(1, 1 << 16), "block?": {"residual", "plain"},
    "activation?": set(ACTIVATIONS), "linear_skip?": bool, "num_conditions?": _FEW, "num_noise?": _FEW,
}  # fmt: skip
_CELL_NETWORK = {name: kind for name, kind in _NETWORK.items() if name != "num_noise?"} | {"cells": [range(1, 1 << 20)]}
_EXPERT_NETWORK = {name: kind for name, kind in _NETWORK.items() if name != "num_noise?"} | {
    "block?": {"residual"}, "experts": range(2, 65),
}  # fmt: skip
_ENCODER = {"dim": _WIDTH, "width?": _WIDTH, "depth?": range(1 << 16)}
State = dict[int, dict[str, Tensor]]
"""An optimiser's tensors by the number of their parameter and their name."""
_STATES = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum"})  # of AdamW and Muon


def read_tensors(content: bytes | None, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        DocumentError: it is missing or damaged.
    """
    if content is None:
        raise DocumentError(f"{name} is missing")
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        raise DocumentError(f"{name} is no safetensors file, or a torn one ({len(content):,} bytes)") from None


def read_file(location: Location, key: str) -> bytes | None:
    """A file of tensors, None where there is none.

    Raises:
        DocumentError: it has more bytes than the machine has memory for.
    """
    import psutil

    most = min(psutil.virtual_memory().available, usable_bytes()) // COPIES
    content = location.read(key, most)
    if content is not None and len(content) > most:
        raise DocumentError(f"{key} has {location.size(key) or 0:,} bytes: more than this machine has memory for")
    return content


def network_of(document: Any, tensors: Mapping[str, Tensor], name: str) -> Network:
    """The network that a document describes, with these weights, ready for use.

    Raises:
        DocumentError: the document describes no network, or the tensors do not fit it.
    """
    if isinstance(document, Mapping) and "experts" in document:
        check_fields(document, _EXPERT_NETWORK, name)
        if document["experts"].bit_count() != 1:
            raise DocumentError(f"{name}: experts = {document['experts']}, expected a power of two")
        return _built(ExpertNetwork, document, _EXPERT_NETWORK, tensors, name)
    if not isinstance(document, Mapping) or "cells" not in document:
        return _built(MLP, document, _NETWORK, tensors, name)
    check_fields(document, _CELL_NETWORK, name)
    if len(document["cells"]) != document["dim"] or len(document["cells"]) > len(tensors):
        raise DocumentError(f"{name}: cells has {len(document['cells']):,} numbers, and dim is {document['dim']:,}")
    network = _built(CellNetwork, document, _CELL_NETWORK, tensors, name)
    if not network.has_ascending_edges:
        raise DocumentError(f"{name}: edges of cells that do not ascend from 0 to 1")
    return network


def encoder_of(document: Any, tensors: Mapping[str, Tensor]) -> Encoder:
    """The encoder that a document describes, likewise."""
    return _built(Encoder, document, _ENCODER, tensors, "encoder")


def mixture_of(tensors: Mapping[str, Tensor], dim: int) -> Mixture:
    """The mixture of ``dim`` columns that ``Mixture.to_tensors`` wrote.

    Raises:
        DocumentError: a tensor is missing or does not fit the others, or they are no mixture.
    """
    num = len(tensors["weights"]) if "weights" in tensors and tensors["weights"].ndim == 1 else 0
    shapes = {"weights": (num,), "means": (num, dim), "factors": (num, dim, dim)}
    with torch.device("meta"):
        wanted = {name: torch.empty(shape, dtype=torch.float64) for name, shape in shapes.items()}
    check_tensors(wanted, tensors, "mixture")
    weights, factors = tensors["weights"], tensors["factors"]
    is_law = bool((weights > 0).all()) and abs(float(weights.sum()) - 1) < 1e-6
    if not is_law or not bool((factors.diagonal(dim1=1, dim2=2) > 0).all()):
        raise DocumentError("mixture: weights that do not sum to 1, or a component without width")
    return Mixture(weights, tensors["means"], factors)


def _built(kind: type[Any], document: Any, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> Any:
    check_fields(document, fields, name)
    if unknown := document.keys() - {key.removesuffix("?") for key in fields}:
        raise DocumentError(f"{name} has a key that this version does not know, {shown(min(unknown))}")
    if document.get("depth", 0) > len(tensors):
        raise DocumentError(f"{name}: depth = {document['depth']:,}, and the file has {len(tensors):,} tensors")
    with torch.device("meta"):
        module: nn.Module = kind(**document)
    check_tensors(module.state_dict(), tensors, name)
    module.load_state_dict({key: tensor.clone() for key, tensor in tensors.items()}, assign=True)
    return module.eval()


def saved_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors as a safetensors file."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def named_states(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The states of optimisers by ``optimizer.NUMBER.PARAMETER.KEY``, which ``states_of`` reads."""
    return {
        f"optimizer.{number}.{index}.{key}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, by the rest of their names."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def states_of(optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor], name: str) -> list[State]:
    """The states of optimisers among the tensors of a checkpoint.

    Raises:
        DocumentError: a parameter is unknown, or a tensor differs from its parameter in shape or type.
    """
    states: list[State] = [{} for _ in optimizers]
    for key, tensor in under(tensors, "optimizer.").items():
        words = key.split(".")
        if len(words) != 3 or not all(word.isdigit() and len(word) < 7 for word in words[:2]):
            raise DocumentError(f"{name}: tensor optimizer.{as_line(key)} is no part of it")
        if int(words[0]) >= len(states):
            raise DocumentError(f"{name}: there is no optimiser {words[0]}")
        states[int(words[0])].setdefault(int(words[1]), {})[words[2]] = tensor
    for optimizer, state in zip(optimizers, states, strict=True):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, found in state.items():
            if index >= len(parameters) or set(found) not in _STATES:
                raise DocumentError(f"{name}: the state of parameter {index} is none of this optimiser")
            for key, tensor in found.items():
                like = torch.zeros(()) if key == "step" else parameters[index]
                _check_tensor(tensor, like, f"{name}: {key} of parameter {index}")
    return states


def check_tensors(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], name: str) -> None:
    """Refuse tensors that differ from the wanted ones in name, shape or type, or hold a number that is not finite.

    Raises:
        DocumentError: the message names the tensor.
    """
    if different := wanted.keys() ^ found.keys():
        key = min(different)
        raise DocumentError(f"{name}: tensor {as_line(key)} {'is missing' if key in wanted else 'is no part of it'}")
    for key, tensor in wanted.items():
        _check_tensor(found[key], tensor, f"{name}: tensor {key}")


def _check_tensor(tensor: Tensor, like: Tensor, name: str) -> None:
    if tensor.shape != like.shape or tensor.dtype != like.dtype:
        raise DocumentError(f"{name} is {_kind(tensor)}, expected {_kind(like)}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise DocumentError(f"{name} holds numbers that are not finite")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def arrays_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, NDArray[Any]]:
    """The tensors as numpy arrays.

    Raises:
        DocumentError: numpy has no such type.
    """
    try:
        return {key: tensor.numpy() for key, tensor in tensors.items()}
    except TypeError:
        raise DocumentError(f"{name}: a tensor has a type that no array has") from None


def check_arrays(
    arrays: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], ascending: Iterable[str], name: str
) -> None:
    """Refuse arrays of other shapes, and those of ``ascending`` whose last axis falls: compiled code checks no bounds.

    Raises:
        DocumentError: the message names the array.
    """
    for key, shape in shapes.items():
        array = arrays[key]
        if array.shape != shape or array.dtype != np.float64:
            raise DocumentError(f"{name}: {key} is {array.dtype} of shape {array.shape}, expected {shape}")
        if not np.isfinite(array).all():
            raise DocumentError(f"{name}: {key} holds numbers that are not finite")
    for key in ascending:
        if (np.diff(arrays[key], axis=-1) < 0).any():
            raise DocumentError(f"{name}: {key} holds knots that do not ascend")
