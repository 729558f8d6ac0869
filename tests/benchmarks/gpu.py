"""Time the Triton kernels on one GPU against its own floor and against other ways to the same sums.

    python tests/benchmarks/gpu.py [--rows 200000] [--sweep] [--output runs/bench/gpu.json]

Needs torch and triton with a C compiler, nothing else of the package's, and pykeops where that is to be compared. The
floor of a pair is the larger of one exponential at 16 a clock and multiprocessor, and 4 (dim + 1) operations (logit and
mean) at the better of the measured float32 matmul rate and a third of the measured TF32 rate (three products give
float32's digits).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# The package about the kernels needs numba, which a GPU machine may lack; an empty one of its name stands in for it.
sys.modules["sfg_dist.flow"] = package = types.ModuleType("sfg_dist.flow")
package.__path__ = [str(ROOT / "sfg_dist" / "flow")]

from sfg_dist.flow.posterior.cuda.blocks import Blocks, make_blocks  # noqa: E402
from sfg_dist.flow.posterior.cuda.engine import posterior_moments_cuda  # noqa: E402
from sfg_dist.flow.posterior.cuda.kernels import WIDE_DIM, is_available  # noqa: E402
from sfg_dist.flow.posterior.cuda.sums import Tiles  # noqa: E402

T = 0.1  # the time at which sums are taken: most pairs matter
EVALUATIONS = 32  # of the posterior mean for one label


def seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Median time of a call, after two that warm up, by CUDA events."""
    for _ in range(2):
        call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def machine() -> dict[str, Any]:
    """The GPU's name, clock and measured matmul rates."""
    import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]

    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits", "--id=0"]
    try:
        clock = float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]) * 1e6
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        clock = float(getattr(properties, "clock_rate", 1.5e6)) * 1e3
    side = 8192
    left, right = torch.randn(2, side, side, device="cuda")
    rates = {}
    for name, precision in (("float32", "highest"), ("tf32", "high")):
        torch.set_float32_matmul_precision(precision)
        rates[name] = 2 * side**3 / seconds(lambda: left @ right)
    torch.set_float32_matmul_precision("highest")
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "clock_hz": clock,
        "exponentials_per_s": 16 * properties.multi_processor_count * clock,
        "float32_flop_per_s": rates["float32"],
        "tf32_flop_per_s": rates["tf32"],
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def floor_pairs_per_s(dim: int, about: dict[str, Any]) -> float:
    flop_per_s = max(about["float32_flop_per_s"], about["tf32_flop_per_s"] / 3)
    return min(about["exponentials_per_s"], flop_per_s / (4 * (dim + 1)))


def case(num_rows: int, num_reference: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_reference, dim, generator=generator)
    x = (x - x.mean(0)).cuda()
    picks = torch.randint(num_reference, (num_rows,), generator=generator)
    z = (1 - T) * x[picks.cuda()] + math.sqrt(T) * torch.randn(num_rows, dim, generator=generator).cuda()
    return z, x


def attention(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Torch's fused attention: |x|^2 as one more column of the keys; columns padded to a multiple of eight."""
    alpha = 1 - T
    width = -(-(x.shape[1] + 1) // 8) * 8
    key, query, value = x.new_zeros(len(x), width), x.new_zeros(len(z), width), x.new_zeros(len(x), width)
    key[:, :-1][:, : x.shape[1]], key[:, -1] = x, x.square().sum(1)
    query[:, :-1][:, : x.shape[1]], query[:, -1] = alpha / T * z, -(alpha**2) / (2 * T)
    value[:, : x.shape[1]] = x
    # Four dimensions, or torch falls back to the plain product that holds every weight.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION):
        output = torch.nn.functional.scaled_dot_product_attention(
            query[None, None], key[None, None], value[None, None], scale=1.0
        )
    return output[0, 0, :, : x.shape[1]]


def blocked(z: torch.Tensor, x: torch.Tensor, tile: int = 8192) -> torch.Tensor:
    """Tiles of logits through torch's own products, with a running maximum."""
    alpha = 1 - T
    bias = -(alpha**2) / (2 * T) * x.square().sum(1)
    output = torch.empty_like(z)
    for start in range(0, len(z), tile):
        query = alpha / T * z[start : start + tile]
        maximum = query.new_full((len(query), 1), -math.inf)
        total, accumulated = query.new_zeros(len(query), 1), torch.zeros_like(query)
        for first in range(0, len(x), 2 * tile):
            keys = x[first : first + 2 * tile]
            logits = torch.addmm(bias[first : first + 2 * tile], query, keys.T)
            larger = torch.maximum(maximum, logits.amax(1, keepdim=True))
            weights, rescale = logits.sub_(larger).exp_(), torch.exp(maximum - larger)
            total = total * rescale + weights.sum(1, keepdim=True)
            accumulated = torch.addmm(accumulated * rescale, weights, keys)
            maximum = larger
        output[start : start + tile] = accumulated / total
    return output


def keops(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """KeOps' own streamed softmax."""
    from pykeops.torch import LazyTensor

    alpha = 1 - T
    rows, columns = LazyTensor(z[:, None].contiguous() / alpha), LazyTensor(x[None].contiguous())
    logits = -(alpha**2) / (2 * T) * ((rows - columns) ** 2).sum(-1)
    return logits.sumsoftmaxweight(columns, axis=1)


def exact(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The mean in float64, few rows at a time."""
    alpha, x = 1 - T, x.double()
    bias = -(alpha**2) / (2 * T) * x.square().sum(1)
    return torch.cat([torch.softmax(alpha / T * part.double() @ x.T + bias, dim=1) @ x for part in z.split(64)])


def ours(z: torch.Tensor, x: Blocks, **options: Any) -> torch.Tensor:
    return posterior_moments_cuda(z, x, alpha=1 - T, beta_sq=T, **options).mean


def sweep(z: torch.Tensor, x: torch.Tensor) -> list[dict[str, Any]]:
    """Time other shapes of a program; those that the GPU cannot hold are left out."""
    narrow = x.shape[1] < WIDE_DIM
    shapes = [
        Tiles(rows, step, warps, stages)
        for rows in ((128, 256, 512) if narrow else (32, 64, 128))
        for step in ((4, 8, 16, 32) if narrow else (16, 32, 64))
        for warps in (4, 8)
        for stages in ((1,) if narrow else (1, 2))
    ]
    results, blocks = [], make_blocks(x)
    for shape in shapes:
        try:
            time_s = seconds(lambda shape=shape: ours(z, blocks, tiles=shape), repeats=3)  # type: ignore[misc]
        except Exception as error:  # too much shared memory, too many registers: what a sweep is for
            print(f"    {tuple(shape)}: {type(error).__name__}", flush=True)
            continue
        results.append({"tiles": list(shape), "pairs_per_s": len(z) * len(x) / time_s})
    return sorted(results, key=lambda result: -result["pairs_per_s"])


def measure(dim: int, arguments: argparse.Namespace, about: dict[str, Any]) -> dict[str, Any]:
    z, x = case(arguments.queries, arguments.rows, dim)
    truth = exact(z[:256], x)
    blocks = make_blocks(x)
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "triton": lambda: ours(z, blocks),
        "triton, tolerance 1e-3": lambda: ours(z, blocks, tolerance=1e-3),
        "torch attention": lambda: attention(z, x),
        "torch blocked": lambda: blocked(z, x),
    }
    if importlib.util.find_spec("pykeops") is None:
        print("keops is not installed and is left out", flush=True)
    else:
        calls["keops"] = lambda: keops(z, x)
    floor = floor_pairs_per_s(dim, about)
    result: dict[str, Any] = {"dim": dim, "floor_pairs_per_s": floor, "methods": {}}
    print(f"dim {dim}: floor {floor:.3g} pairs/s", flush=True)
    for name, call in calls.items():
        try:
            error = (call()[:256].double() - truth).norm(dim=1)
            time_s = seconds(call)
        except Exception as problem:  # one method that fails must not lose the others' figures
            result["methods"][name] = {"failed": f"{type(problem).__name__}: {problem}"}
            print(f"    {name:34} failed: {result['methods'][name]['failed'].splitlines()[0][:100]}", flush=True)
            continue
        pairs = len(z) * len(x) / time_s
        result["methods"][name] = {
            "seconds": time_s,
            "pairs_per_s": pairs,
            "share_of_floor": pairs / floor,
            "error_max": error.max().item(),
            "error_median": error.median().item(),
        }
        print(
            f"    {name:34} {pairs:9.3g} pairs/s  {pairs / floor:6.1%} of the floor"
            f"  error {error.median().item():.1e} median {error.max().item():.1e} max",
            flush=True,
        )
    if dim in (6, 43) and "pairs_per_s" in result["methods"]["triton"]:
        # A label visits every reference at each evaluation, so a slice of the queries gives the whole table's rate.
        result["labels_per_s"] = result["methods"]["triton"]["pairs_per_s"] / (len(x) * EVALUATIONS)
        result["label_seconds_for_all_rows"] = len(x) / result["labels_per_s"]
        print(
            f"    {len(x):,} labels from {len(x):,} references, {EVALUATIONS} evaluations: "
            f"{result['labels_per_s']:,.0f} labels/s, {result['label_seconds_for_all_rows']:.1f} s in all",
            flush=True,
        )
    if arguments.sweep:
        result["sweep"] = sweep(z, x)
        for best in result["sweep"][:5]:
            print(f"    tiles {best['tiles']}: {best['pairs_per_s']:.3g} pairs/s", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000, help="references")
    parser.add_argument("--queries", type=int, default=16_384, help="rows of the slice that is timed")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 6, 16, 43, 64])
    parser.add_argument("--sweep", action="store_true", help="also time other tile shapes")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/gpu.json"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or not is_available("cuda"):
        raise SystemExit("gpu.py needs a CUDA device and triton; torch sees none on this machine")
    about = machine()
    print(
        " ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in about.items())
    )
    results = [measure(dim, arguments, about) for dim in arguments.dims]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"machine": about, "t": T, "results": results}, indent=1) + "\n")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
