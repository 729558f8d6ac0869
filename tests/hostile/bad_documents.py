"""JSON and TOML that a stranger wrote: deep, long, of other types, with numbers that are none; seals made anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from harness import Case, World, parts_of

from sfg_dist.job.plan import Plan, seal, unseal

STEP = "checkpoints/step_000000030"
DEEP = "[" * 100_000
ESCAPES = "a\x1b[2J\x07\r\nsfg: all is well"
Document = dict[str, Any]

# Whole documents that are none of what is expected.
WHOLES = {
    "empty": b"",
    "deep": DEEP.encode(),
    "deep and closed": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "not a number": b"NaN",
    "a number of 100,000 digits": b'{"format": ' + b"9" * 100_000 + b"}",
    "no UTF-8": b"\xff\xfe{}",
    "half a pair of surrogates": b'{"\\ud800": "\\udfff"}',
    "other keys": b'{"a": 1, "a": 2}',
    "zeros": bytes(4096),
}


def write(world: World, key: str, content: bytes) -> None:
    """Put bytes in place of what lies at a key."""
    world.in_place_of(key).write_bytes(content)


def change(world: World, key: str, edit: Callable[[Document], Any]) -> None:
    """Edit a JSON document."""
    document = json.loads((world.run / key).read_bytes())
    edit(document)
    write(world, key, json.dumps(document).encode())


def change_plan(world: World, edit: Callable[[Document], Any]) -> None:
    """Edit the plan and its copy, with a run id and a seal that fit where there can be one."""
    fields = unseal((world.run / "pairs.zarr/plan.json").read_bytes())
    edit(fields)
    try:
        plan = Plan(**{key: value for key, value in fields.items() if key != "run_id"})
        fields["run_id"] = plan.run_id
    except Exception:
        pass  # a plan that cannot be read at all
    for key in ("plan.json", "plan.copy.json"):
        write(world, f"pairs.zarr/{key}", seal(fields))


def change_commit(world: World, edit: Callable[[Document], Any]) -> None:
    """Edit the commits of all shards, with seals that fit."""
    for path in (world.run / "pairs.zarr/commits").iterdir():
        fields = unseal(path.read_bytes())
        edit(fields)
        path.write_bytes(seal(fields))


def put(*path: str, value: Any) -> Callable[[Document], None]:
    """An edit that sets a value at a path of keys."""

    def edit(document: Document) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return edit


def remove(*path: str) -> Callable[[Document], None]:
    """An edit that removes a key."""

    def edit(document: Document) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return edit


def _whole(keys: tuple[str, ...], content: bytes, world: World) -> None:
    for key in keys:
        write(world, key, content)


def _wholes() -> Iterator[Case]:
    all_kinds, some = tuple(WHOLES), ("deep", "a list", "no UTF-8")
    for keys, commands, kinds in (
        (("pairs.zarr/plan.json",), ("status", "verify"), all_kinds),
        (("pairs.zarr/plan.json", "pairs.zarr/plan.copy.json"), ("status", "verify", "label"), some),
        (("pairs.zarr/plan-0001.json",), ("status", "verify", "repair", "extend"), some),
        (("pairs.zarr/frame.json",), ("verify", "label"), some),
        (("pairs.zarr/commits/00000003.json",), ("status", "verify", "label"), all_kinds),
        (("pairs.zarr/drivers/a.json",), ("status", "prometheus"), some),
        (("pairs.zarr/zarr.json",), ("verify", "refit", "extend"), some),
        (("pairs.zarr/latents/zarr.json",), ("verify", "refit"), some),
        (("pairs.zarr/transform/zarr.json",), ("verify", "refit"), some),
        (("samples.zarr/zarr.json",), ("evaluate", "sample"), some),
        (("samples.zarr/X/zarr.json",), ("evaluate",), some),
        (("model/generator.json",), ("draw",), all_kinds),
        (("checkpoints/fit.json",), ("train",), some),
        (("checkpoints/fitted.json",), ("train",), some),
        (("checkpoints/hold.json",), ("train_on",), some),
        (("checkpoints/live.json",), ("train_on",), some),
        (("checkpoints/history.jsonl",), ("train_on",), some),
        ((f"{STEP}/progress.json",), ("train_on",), some),
        (("events.jsonl",), ("evaluate", "label"), ("deep", "a list", "a number", "other keys")),
        (("job.toml",), ("repair", "repair_dry"), ("empty", "deep", "no UTF-8", "zeros")),
    ):  # fmt: skip
        for kind in kinds:
            yield Case(
                f"document: {' and '.join(keys)} is {kind}",
                partial(_whole, keys, WHOLES[kind]),
                commands,
                parts_of(*keys),
            )


def _plans() -> Iterator[Case]:
    far = 10**18
    edits: Mapping[str, Callable[[Document], Any]] = {
        "2^61 pairs": put("num_pairs", value=2**61),
        "four thousand million pairs": put("num_pairs", value=2**32),
        "minus one pair": put("num_pairs", value=-1),
        "half a pair": put("num_pairs", value=0.5),
        "pairs in quotes": put("num_pairs", value="1000"),
        "true pairs": put("num_pairs", value=True),
        "no rows in a shard": put("shard_rows", value=0),
        "minus rows in a shard": put("shard_rows", value=-128),
        "one row in a shard of 2^40": lambda plan: plan.update(shard_rows=1, num_pairs=2**40),
        "2^60 rows in a shard": put("shard_rows", value=2**60),
        "rows of a shard in quotes": put("shard_rows", value="128"),
        "no columns": put("dim", value=0),
        "minus one column": put("dim", value=-1),
        "10^9 columns": put("dim", value=10**9),
        "columns as a list": put("dim", value=[2]),
        "names that are numbers": put("columns", value=[1, 2]),
        "names that are none": put("columns", value=None),
        "names with a terminal's words": put("columns", value=[ESCAPES, "y"]),
        "an identity that is a list": put("identity", value=[]),
        "no labels": remove("identity", "labels"),
        "no blur": remove("identity", "blur"),
        "labels that are a text": put("identity", "labels", value="x"),
        "a batch of nothing": put("identity", "labels", "batch_size", value=0),
        "a batch without end": put("identity", "labels", "batch_size", value=far),
        "a batch of minus one": put("identity", "labels", "batch_size", value=-1),
        "evaluations without end": put("identity", "labels", "num_evaluations", value=far),
        "a direction that is none": put("identity", "labels", "direction", value="sideways"),
        "a solver that is none": put("identity", "labels", "solver", value="../../x"),
        "a seed in quotes": put("identity", "labels", "seed", value="0"),
        "a t_min that is no number": put("identity", "blur", "t_min", value="x"),
        "a condition that is a number": put("identity", "data", "condition", value=3),
        "queries that are not there": put("identity", "queries", value="0" * 64),
        "versions as a list": put("versions", value=["numpy"]),
        "versions with a terminal's words": put("versions", value={"numpy": ESCAPES, ESCAPES: "1"}),
        "a source with a terminal's words": put("source", value=ESCAPES),
        "a source that is a number": put("source", value=7),
        "a frame that is a list": put("frame", value=[]),
        "a format of its own": put("format_version", value=[2]),
        "keys of its own": put("__class__", value="x"),
    }
    commands = ("status", "verify", "repair_dry", "label")
    for name, edit in edits.items():
        yield Case(f"plan: {name}", partial(_edit_plan, edit), commands, "pairs.zarr")
    for name in (
        "2^61 pairs",
        "10^9 columns",
        "a batch without end",
        "labels that are a text",
        "a solver that is none",
    ):
        yield Case(f"plan: {name}", partial(_edit_plan, edits[name]), ("prometheus", "repair"), "pairs.zarr|job.toml")


def _measured(**spoilt: Any) -> Callable[[Document], None]:
    """A measured certificate of two times, some of whose fields are of a stranger's choice."""
    record = {"seed": 0, "quantile": 0.99, "confidence": 0.95, "beta_sq": [0.5, 0.1], "thresholds": [1e-3, 1e-3],
              "num_fresh": 48, "num_over": [0, 0], "largest": 0.0}  # fmt: skip

    def edit(plan: Document) -> None:
        labels = plan["identity"]["labels"]
        labels["certificate"] = "measured"
        plan["identity"]["certificate"] = {"decode": {**record, "tolerance": labels["tolerance"], **spoilt}}
        plan["format_version"] = 4

    return edit


def _fitted(grids: Any) -> Callable[[Document], None]:
    """Time grids of a stranger's choice."""

    def edit(plan: Document) -> None:
        plan["identity"]["labels"]["time_grid"] = "fitted"
        plan["identity"]["time_grid"] = grids

    return edit


def _fits() -> Iterator[Case]:
    """Plans whose certificates and time grids do not fit their labels; a damaged shard is labelled again by them."""
    for name, edit in {
        "fewer thresholds than times": _measured(thresholds=[1e-3]),
        "no times": _measured(beta_sq=[], thresholds=[1.0] * 3, num_over=[]),
        "times that rise": _measured(beta_sq=[0.1, 0.5]),
        "thresholds below nothing": _measured(thresholds=[-1.0, -1.0]),
        "thresholds in words": _measured(thresholds=["all", "none"]),
        "a tolerance without end": _measured(tolerance=1e300),
        "a seed without end": _measured(seed=2**70),
        "a certificate of no direction": lambda plan: (_measured()(plan), plan["identity"].update(certificate={})),
        "a certificate of another direction": lambda plan: (
            _measured()(plan),
            plan["identity"].update(certificate={"encode": plan["identity"]["certificate"]["decode"]}),
        ),
        "a certificate that nobody asked for": lambda plan: (
            _measured()(plan), plan["identity"]["labels"].pop("certificate")
        ),
        "a time grid of no direction": _fitted({}),
        "a time grid of another direction": _fitted({"encode": [0.0, -1.0]}),
        "a time grid without points": _fitted({"decode": []}),
        "a time grid that rises": _fitted({"decode": [float(n) for n in range(23)]}),
        "a time grid in words": _fitted({"decode": ["a"]}),
        "a reference that is a path": put("identity", "reference", value="../../../victim/x"),
        "a debiased reference that is not there": put("identity", "debiased", value="0" * 64),
        "a debiased reference that is a path": put("identity", "debiased", value="../../../victim/x"),
    }.items():  # fmt: skip
        spoil = partial(_damaged_and_edited, edit)
        commands = ("verify", "repair") if "debiased" in name else ("verify", "label", "repair")
        yield Case(f"plan: {name}", spoil, commands, "pairs.zarr|job.toml", (1, 2))


def _damaged_and_edited(edit: Callable[[Document], Any], world: World) -> None:
    path = world.run / "pairs.zarr/labels/c/2/0"
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    change_plan(world, edit)
    change_commit(world, put("run_id", value=json.loads((world.run / "pairs.zarr/plan.json").read_bytes())["run_id"]))


def _figures() -> Iterator[Case]:
    """Figures of a stranger, of which `sfg report` draws a page."""
    figure = {"value": 0.5, "error": 0.1, "floor": 0.5, "copy": None, "independent": None}
    far = {"value": 1e308, "error": -1e308, "floor": float("inf"), "copy": float("nan"), "independent": 0}
    for name, edit in {
        "floors that are none": put("columns", value=[{"column": "x", "score": 0.5, "floor": None}]),
        "columns that it has not": put("columns", value=[{"column": ESCAPES, "score": 0.5, "floor": 0.5}]),
        "pairs of one column": put("pairs", value=[{"columns": ["x"], "score": 0.5, "floor": None}]),
        "pairs of no column": put("pairs", value=[{"columns": [], "score": 0.5, "floor": None}]),
        "a pair of one column twice": put("pairs", value=[{"columns": ["x", "x"], "score": 0.5, "floor": None}]),
        "scores without end": put("columns", value=[{"column": "x", "score": float("inf"), "floor": float("nan")}]),
        "figures of their own": put("figures", value={"<script>": figure, "shape": figure}),
        "figures without end": put("figures", value={"shape": far, "c2st_trees_held_out": far, "attack_auc": far}),
        "rules of their own": put("rules", value=[{"rule": f"<b>{ESCAPES}", "share": 1e308, "floor": float("nan")}]),
        "an error of labels that was half measured": put("label_error", "measured", value=5),
        "an error of labels that was measured in words": put("label_error", "measured", value="all"),
        "seconds without end": put("time_s", value={ESCAPES: 1e308, "label": float("nan")}),
        "a calibration of nothing": put(
            "calibration", value={"figures": {}, "columns": [], "num_rows": 0, "num_draws": 0}
        ),
        "a target that it has not": put("target", value="<script>"),
        "sentences of their own": put("left_out", value=["<script>alert(1)</script>", ESCAPES]),
        "a likelihood of their own": put("likelihood", value={"<i>": {"mean": None, "num_rows": 2**62}}),
    }.items():
        spoil = partial(lambda edit, world: change(world, "metrics.json", edit), edit)
        yield Case(f"figures: {name}", spoil, ("report",), "metrics.json")


def _edit_plan(edit: Callable[[Document], Any], world: World) -> None:
    change_plan(world, edit)


def _commits() -> Iterator[Case]:
    edits: Mapping[str, Callable[[Document], Any]] = {
        "seconds in words": put("seconds", value="abc"),
        "seconds that are no number": put("seconds", value=float("nan")),
        "seconds without end": put("seconds", value=10**400),
        "an end in words": put("finished", value="soon"),
        "an end far away": put("finished", value=1e300),
        "a device that is a list": put("device", value=["cpu"]),
        "a device with a terminal's words": put("device", value=ESCAPES),
        "a host that is an object": put("host", value={}),
        "versions that are a number": put("versions", value=1),
        "attempts in words": put("attempt", value="twice"),
        "pairs in words": put("pairs", value="all"),
        "evaluations that are a list": put("evaluations", value=[]),
        "a tolerance that is none": put("tolerance_reached", value="small"),
        "digests of another length": put("objects", "labels", "sha256", value=7),
        "an object elsewhere": put("objects", "labels", "key", value="../../../victim/secret.txt"),
        "sizes in quotes": put("objects", "labels", "bytes", value="1028"),
        "objects that are a list": put("objects", value=[]),
        "a mebibyte of text": put("host", value="x" * 2**20),
    }
    for name, edit in edits.items():
        yield Case(f"commit: {name}", partial(_edit_commit, edit), ("status", "prometheus", "verify"), "commits")
    yield Case("commit: digests of other rows", _other_rows, ("verify", "repair", "label"), "labels|latents")


def _edit_commit(edit: Callable[[Document], Any], world: World) -> None:
    change_commit(world, edit)


def _other_rows(world: World) -> None:
    change_commit(world, put("objects", "labels", "sha256", value="0" * 64))


def _snapshots() -> Iterator[Case]:
    driver = {"driver": "d", "host": "h", "pid": 1, "started": 1.0, "updated": 4e9, "is_running": True, "total": 8,
              "done": 3, "todo": 5, "rows_per_s": 1.0, "workers": [], "failures": [], "num_failures": {}}  # fmt: skip
    for name, more in {
        "a terminal's words": {"driver": ESCAPES, "host": ESCAPES},
        "a worker with a terminal's words": {"workers": [{"worker": ESCAPES, "host": ESCAPES, "state": ESCAPES}]},
        "failures with a terminal's words": {
            "failures": [{"shard": 1, "attempt": 1, "worker": ESCAPES, "reason": ESCAPES, "action": ESCAPES}],
            "num_failures": {ESCAPES: 1},
        },
        "a failure that is a list": {"failures": [[]]},
        "times without end": {"started": -1e308, "updated": 1e308},
        "numbers without end": {"total": 10**300, "done": -(10**300)},
        "a shard beyond the plan": {"workers": [{"worker": "w", "shard": 10**12}]},
        "a million workers": {"workers": [{"worker": "w"}] * 100_000},
        "markup": {"driver": "[bold red]x[/bold]", "host": "[link=file:///etc]x[/link]"},
    }.items():
        content = json.dumps({**driver, **more}).encode()
        yield Case(f"snapshot: {name}", partial(_whole, ("pairs.zarr/drivers/a.json",), content),
                   ("status", "watch", "prometheus"), "drivers", (0,))  # fmt: skip


def _logs() -> Iterator[Case]:
    for name, line in {
        "an event without a name": b'{"time": 1}',
        "a stage without a name": b'{"time": 1, "event": "stage_started"}',
        "a time in words": b'{"time": "now", "event": "stage_started", "stage": "label", "fresh": true}',
        "a stage that is a list": b'{"time": 1, "event": "stage_started", "stage": [], "fresh": true}',
        "a terminal's words": json.dumps({"time": 1, "event": ESCAPES, "stage": ESCAPES}).encode(),
        "a depth without end": DEEP.encode(),
        "a line of 4 MiB": b'"' + b"x" * 2**22,
    }.items():
        # A bad line stops no command: the log is for the reader. A file that begins with no event is not the run's own.
        statuses = (2,) if name in ("a line of 4 MiB", "a depth without end") else (0,)
        yield Case(f"log: {name}", partial(_append, "events.jsonl", line), ("evaluate",), "events.jsonl", statuses)


def _append(key: str, line: bytes, world: World) -> None:
    path = world.run / key
    path.write_bytes(line + b"\n" + path.read_bytes() + line + b"\n" + b"\x00")


def _jobs() -> Iterator[Case]:
    """The job file beside a store is the stranger's, and `sfg repair` reads it."""
    text = '[data]\nsource = "moons"\n[executor]\nkind = "inline"\n'
    for name, content in {
        "of nested tables": "[" + ".".join(["a"] * 5000) + "]\n",
        "of nested lists": "a = " + "[" * 5000 + "]" * 5000 + "\n",
        "with keys of its own": text + "[x]\ny = 1\n",
        "with a terminal's words": text.replace("moons", "\\u001b[2J\\u0007"),
        "with numbers that are none": text + "[labels]\nt_min = nan\n",
        "with numbers without end": text + "[labels]\nnum_pairs = " + "9" * 5000 + "\n",
        "of 32 MiB": text + "#" * 2**25,
    }.items():
        yield Case(f"job beside a store: {name}", partial(_whole, ("job.toml",), content.encode()),
                   ("repair", "repair_dry"), "job.toml")  # fmt: skip


CASES = [*_wholes(), *_plans(), *_fits(), *_figures(), *_commits(), *_snapshots(), *_logs(), *_jobs()]
