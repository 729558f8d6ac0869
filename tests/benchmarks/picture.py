"""One picture of the last measurements: runs/bench/bench.png from the JSON files beside it.

.venv/bin/python tests/benchmarks/picture.py [--output runs/bench]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import common
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

PEERS = {  # one colour a peer, apart for colour-blind readers
    "published": ("published", "#7f7f7f", "s"),
    "blocked": ("torch, blocked", "#cc79a7", "v"),
    "keops": ("KeOps", "#e69f00", "^"),
    "jax": ("jax.jit", "#009e73", "D"),
    "sdpa": ("torch attention", "#0072b2", "o"),
}
LAWS = {
    "power": ("power, 6 columns", "#0072b2", "o"),
    "clusters": ("clusters, 21 columns", "#d55e00", "s"),
    "normals": ("normal clusters, 6 columns", "#cc79a7", "^"),
}
TABLES = {"power": "power\n6 columns", "gas": "gas turbine\n11 columns", "beijing": "Beijing\n10 columns"}


def _dense(axes: Axes, record: dict[str, Any]) -> None:
    for key, (label, color, marker) in PEERS.items():
        points = [
            (row["dim"], row["pairs_per_s"]["ours"] / row["pairs_per_s"][key])
            for row in record["rows"]
            if key in row["pairs_per_s"]
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, color=color, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(yscale="log", xlabel="dimension", ylabel="our pairs/s over the peer's", title="Dense posterior mean")
    axes.set_xticks([row["dim"] for row in record["rows"]])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(top=10 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=9, ncol=2, loc="upper center")


def _label_time(axes: Axes, record: dict[str, Any]) -> None:
    rows = record["rows"]
    bars = axes.bar([TABLES[row["table"]] for row in rows], [row["ratio"] for row in rows], color="#0072b2", width=0.5)
    axes.bar_label(bars, [f"{row['ratio']:.1f}x" for row in rows], padding=3)
    axes.axhline(50, color="#009e73", linestyle="--", label="goal, 50x")
    axes.axhline(15, color="#d55e00", linestyle=":", label="floor, 15x")
    axes.set_ylim(0, 1.25 * max([50, *(row["ratio"] for row in rows)]))
    axes.set_xlim(-0.6, max(2, len(rows)) - 0.4)
    axes.set(ylabel="published time over ours", title="Time a label")
    axes.legend(frameon=False, fontsize=9, loc="upper right")


def _growth(axes: Axes, record: dict[str, Any]) -> None:
    for key, (label, color, marker) in LAWS.items():
        rows = [row for row in record["rows"] if row["law"] == key]
        if rows:
            sizes = [row["num_reference"] for row in rows]
            ratios = [row["label_s"] / rows[0]["label_s"] for row in rows]
            axes.plot(sizes, ratios, marker=marker, color=color, label=f"{label}: {ratios[-1]:.1f}x")
            axes.plot(sizes, [size / sizes[0] for size in sizes], color="#7f7f7f", linewidth=0.8, linestyle="--")
    axes.plot([], [], color="#7f7f7f", linewidth=0.8, linestyle="--", label="every pair")
    axes.axhline(10, color="#009e73", linestyle=":", label="target, 10x")
    axes.set(xscale="log", yscale="log", xlabel="references", ylabel="time over the smallest's", title="Growth")
    sizes = sorted({row["num_reference"] for row in record["rows"]})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_ylim(top=4 * sizes[-1] / sizes[0])  # room for the legend
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(frameon=False, fontsize=9)


PANELS = {"dense": _dense, "label_time": _label_time, "growth": _growth}


def draw(folder: Path) -> Path | None:
    """The picture of what has been measured; None if nothing has."""
    records = {name: json.loads(path.read_text()) for name in PANELS if (path := folder / f"{name}.json").exists()}
    if not records:
        return None
    figure, panels = plt.subplots(1, len(records), figsize=(5.2 * len(records), 4.4), squeeze=False)
    for axes, (name, record) in zip(panels[0], records.items(), strict=True):
        PANELS[name](axes, record)
        axes.spines[["top", "right"]].set_visible(False)
    machine = next(iter(records.values()))["machine"]
    quick = "   (quick: not a figure)" if any(record.get("quick") for record in records.values()) else ""
    figure.suptitle(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}{quick}", fontsize=10)
    figure.tight_layout()
    path = folder / "bench.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def main() -> None:
    arguments = common.parser(__doc__).parse_args()
    path = draw(arguments.output)
    common.console.print(f"written: {path}" if path else "nothing measured yet: no picture")


if __name__ == "__main__":
    main()
