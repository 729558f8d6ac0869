"""Chooses the engine that computes a posterior: by name, or the fastest for the reference's device, type and size."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from sfg_dist.flow.posterior.reference import PreparedReference
from sfg_dist.flow.posterior.reference_block import ReferenceBlock

Backend = Literal["auto", "dense", "sparse", "native", "fused", "blocked", "triton"]

SPARSE_ROWS = 4096  # with fewer rows a dense pass costs no more than looking at the clusters
SPARSE_DIM = 64  # in more columns the bounds leave out next to nothing
BY_ROW: tuple[Backend, ...] = ("sparse", "native")  # a row's bits are its own there, whatever the batch's shape


def choose_backend(reference: PreparedReference, backend: Backend, tolerance: float) -> Backend:
    """The engine that a call with these arguments uses.

    Raises:
        ValueError: the named backend does not work on the reference's device or dtype, or the tolerance is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    single = reference.dtype == torch.float32
    on_cpu = reference.device.type == "cpu"
    has_kernels = single and (on_cpu or _has_triton(reference.device))
    if backend == "auto":
        pays = tolerance > 0 and reference.num_reference >= SPARSE_ROWS and reference.dim <= SPARSE_DIM
        backend = "sparse" if has_kernels and pays else "dense"
    if backend == "dense":
        return dense_engine(reference)
    if (backend == "sparse" and not has_kernels) or (backend == "native" and not (on_cpu and single)):
        where = "the CPU" if backend == "native" else "the CPU, or on a GPU with Triton"
        raise ValueError(
            f'backend = "{backend}" works in float32 on {where}; '
            f"the reference is {reference.dtype} on {reference.device}"
        )
    if backend == "fused" and not on_cpu:
        raise ValueError(f'backend = "fused" works on the CPU; the reference is on {reference.device}')
    if backend == "triton" and not single:
        raise ValueError(f'backend = "triton" works in float32; the reference is {reference.dtype}')
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    return backend


def check_measurable(reference: PreparedReference) -> None:
    """Refuse a reference that a measured certificate does not serve.

    Raises:
        ValueError: it is not in float32 on the CPU, is in several blocks, or has too few rows or too many columns.
    """
    from sfg_dist.flow.posterior.clusters import MAX_COVARIANCE_DIM

    if reference.device.type != "cpu" or reference.dtype != torch.float32:
        problem = f"works in float32 on the CPU; the reference is {reference.dtype} on {reference.device}"
    elif reference.num_blocks > 1:
        problem = f"takes one block, and the reference has {reference.num_blocks}: take Reference(rows, whole=True)"
    elif reference.num_reference < SPARSE_ROWS:
        problem = f"pays from {SPARSE_ROWS} rows on; the reference has {reference.num_reference}"
    elif reference.dim > MAX_COVARIANCE_DIM:
        problem = f"works in up to {MAX_COVARIANCE_DIM} columns; the reference has {reference.dim}"
    else:
        return
    raise ValueError(f'certificate = "measured" {problem}')


def _has_triton(device: torch.device) -> bool:
    from sfg_dist.flow.posterior.cuda.kernels import is_available

    return is_available(device)


def dense_engine(reference: PreparedReference | ReferenceBlock) -> Backend:
    """The fastest engine that sums over every row."""
    single = reference.dtype == torch.float32
    if reference.device.type == "cpu":
        from sfg_dist.flow.posterior.cpu.engine import has_dense

        return "native" if single and has_dense(reference.dim) else "fused"
    return "triton" if single and _has_triton(reference.device) else "blocked"
