"""Directories that a stranger laid out: links at each level, FIFOs and devices, files that are folders, odd names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from harness import Case, World, parts_of

STEP = "checkpoints/step_000000030"
FOUND = (1,)  # what `verify` ends with where something is wrong


def _of_home(name: str) -> Callable[[World], Path]:
    return lambda world: world.home / name


def _of_victim(name: str) -> Callable[[World], Path]:
    return lambda world: world.victim / name


def _link(key: str, target: Callable[[World], Path], world: World) -> None:
    world.link(key, target(world))


def _moved(key: str, world: World) -> None:
    world.move_to_victim(key)


def _links_of_the_output() -> Iterator[Case]:
    bashrc, folder, new = _of_home(".bashrc"), _of_victim("folder"), _of_victim("new")
    writers = ("label", "extend", "refit", "sample")
    for name, key, target, commands in (
        ("log to a start-up file", "events.jsonl", bashrc, (*writers, "evaluate")),
        ("log to nothing", "events.jsonl", new, ("label", "refit")),
        ("log to a device", "events.jsonl", lambda _: Path("/dev/zero"), ("label", "evaluate")),
        ("job to a start-up file", "job.toml", bashrc, ("label", "repair", "repair_dry")),
        ("job to nothing", "job.toml", new, ("label", "repair")),
        ("job to a device", "job.toml", lambda _: Path("/dev/zero"), ("repair",)),
        ("curves to a folder", "tensorboard", folder, ("refit", "train_on")),
        ("curves to nothing", "tensorboard", new, ("refit",)),
        ("curves to the home", "tensorboard", lambda world: world.home, ("refit",)),
        ("checkpoints to a folder", "checkpoints", folder, ("train", "refit")),
        ("checkpoints to nothing", "checkpoints", new, ("refit",)),
        ("history of the fit to a start-up file", "checkpoints/history.jsonl", bashrc, ("train_on", "refit")),
        ("hold of the fit to a start-up file", "checkpoints/hold.json", bashrc, ("train_on", "refit")),
        ("word of the fit to a start-up file", "checkpoints/live.json", bashrc, ("train_on",)),
        ("failure of the fit to a secret", "checkpoints/failed.txt", _of_home(".netrc"), ("train_on", "refit")),
        ("next checkpoint to a folder", "checkpoints/step_000000015", folder, ("refit",)),
        ("model to a folder", "model", folder, ("refit", "draw", "export")),
        ("model to nothing", "model", new, ("refit",)),
        ("model's document to a secret", "model/generator.json", _of_victim("secret.txt"), ("draw", "refit")),
        ("samples to a folder", "samples.zarr", folder, ("sample", "evaluate")),
        ("samples to nothing", "samples.zarr", new, ("sample",)),
        ("samples' array to a folder", "samples.zarr/X", folder, ("sample", "evaluate")),
        ("figures to a start-up file", "metrics.json", bashrc, ("evaluate",)),
        ("page to a start-up file", "report.html", bashrc, ("evaluate",)),
        ("page to nothing", "report.html", new, ("evaluate",)),
        ("table to write to nothing", "rows.zarr", new, ("draw_parts",)),
        ("array to write to a folder", "rows.zarr/X", folder, ("draw_parts",)),
        ("peers to a folder", "compare", folder, ("compare",)),
    ):
        yield Case(f"link: {name}", partial(_link, key, target), commands, names=parts_of(key))


def _links_of_the_store() -> Iterator[Case]:
    folder, new = _of_victim("folder"), _of_victim("new")
    bashrc = _of_home(".bashrc")
    every = ("status", "verify", "repair", "label")
    for name, key, target, commands in (
        ("store to a folder", "pairs.zarr", folder, ("label", "status")),
        ("store to nothing", "pairs.zarr", new, ("label",)),
        ("commits to a folder", "pairs.zarr/commits", folder, every),
        ("claims to a folder", "pairs.zarr/claims", folder, ("repair", "extend")),
        ("drivers to a folder", "pairs.zarr/drivers", folder, ("status", "extend")),
        ("a driver's word to a start-up file", "pairs.zarr/drivers/a.json", bashrc, ("status", "extend")),
        ("events to a folder", "pairs.zarr/events", folder, ("verify", "extend")),
        ("events to nothing", "pairs.zarr/events", new, ("extend",)),
        ("extensions to a folder", "pairs.zarr/extensions", folder, ("verify", "extend", "repair")),
        ("extensions to nothing", "pairs.zarr/extensions", new, ("extend",)),
        ("queries to a folder", "pairs.zarr/queries", folder, ("verify", "label", "repair")),
        ("a foreign folder to the home", "pairs.zarr/notes", lambda world: world.home, ("verify", "repair", "status")),
        ("a foreign name to a secret", "pairs.zarr/notes.txt", _of_home(".netrc"), ("verify", "repair")),
        ("chunks beyond the plan to a folder", "pairs.zarr/labels/c/99", folder, ("verify", "repair", "status")),
        ("a half written file to a secret", "pairs.zarr/labels/c/3/0#1", _of_home(".netrc"), ("verify", "repair")),
        ("itself", "pairs.zarr/loop", lambda world: world.run / "pairs.zarr", ("verify", "repair", "status")),
        ("a commit to a device", "pairs.zarr/commits/00000003.json", lambda _: Path("/dev/zero"), every),
        ("a chunk to a device", "pairs.zarr/labels/c/3/0", lambda _: Path("/dev/zero"), ("verify", "repair")),
        ("the plan to a device", "pairs.zarr/plan.json", lambda _: Path("/dev/zero"), ("status", "verify", "label")),
    ):  # fmt: skip
        yield Case(
            f"link: {name}",
            partial(_link, key, target),
            commands,
            names=parts_of(key),
        )
    yield Case("link: quarantine to a folder, and a file for it", _quarantine, ("repair", "repair_dry"), "quarantine")


def _quarantine(world: World) -> None:
    world.link("pairs.zarr/quarantine", world.victim / "folder")
    (world.run / "pairs.zarr" / "notes.txt").write_text("hello")


def _links_that_read_well() -> Iterator[Case]:
    """What lies behind these links is what belongs there: whoever follows them finds nothing wrong."""
    fit, store = ("train", "train_on"), ("status", "verify", "repair", "label", "refit")
    for key, commands in (
        ("job.toml", ("repair", "repair_dry", "label")),
        ("events.jsonl", ("evaluate", "label")),
        ("checkpoints", (*fit, "refit")),
        (STEP, (*fit, "refit")),
        (f"{STEP}/state.safetensors", ("train_on",)),
        (f"{STEP}/progress.json", fit),
        ("checkpoints/fit.json", fit),
        ("checkpoints/fitted.json", ("train",)),
        ("checkpoints/fitted.safetensors", ("train",)),
        ("model", ("draw", "sample", "export", "refit")),
        ("model/model.safetensors", ("draw", "sample", "export", "refit")),
        ("model/generator.json", ("draw", "export")),
        ("samples.zarr", ("evaluate", "sample")),
        ("samples.zarr/X", ("evaluate",)),
        ("samples.zarr/X/c/0/0", ("evaluate", "sample")),
        ("samples.zarr/zarr.json", ("evaluate",)),
        ("metrics.json", ("evaluate",)),
        ("tensorboard", ("train_on", "refit")),
        ("pairs.zarr", ("label", "refit", "extend", "status")),
        ("pairs.zarr/plan.json", store),
        ("pairs.zarr/plan.copy.json", ("verify", "repair")),
        ("pairs.zarr/frame.json", store),
        ("pairs.zarr/zarr.json", ("verify", "refit")),
        ("pairs.zarr/latents", store),
        ("pairs.zarr/labels/c", store),
        ("pairs.zarr/labels/c/3", ("status", "verify", "refit")),
        ("pairs.zarr/labels/c/3/0", store),
        ("pairs.zarr/labels/zarr.json", ("verify", "refit")),
        ("pairs.zarr/reference", ("verify", "extend", "refit")),
        ("pairs.zarr/reference/rows/c/0/0", ("verify", "extend", "refit")),
        ("pairs.zarr/transform", ("verify", "refit")),
        ("pairs.zarr/transform/scale/c/0", ("verify", "refit", "evaluate")),
        ("pairs.zarr/column", ("verify",)),
        ("pairs.zarr/commits", store),
        ("pairs.zarr/commits/00000003.json", store),
        ("pairs.zarr/drivers", ("status", "extend")),
        ("pairs.zarr/events", ("extend",)),
    ):
        for command in commands:
            must_find = command == "verify" and key not in ("pairs.zarr",)
            statuses = FOUND if must_find else (0, 1, 2)
            yield Case(f"link: {key} elsewhere, {command}", partial(_moved, key), (command,), parts_of(key), statuses)


def _hard_link(key: str, world: World) -> None:
    os.link(world.home / ".bashrc", world.in_place_of(key))


def _hard_links() -> Iterator[Case]:
    for key, commands in (
        ("events.jsonl", ("label", "refit")),
        ("checkpoints/history.jsonl", ("train_on",)),
        ("job.toml", ("label",)),
        ("metrics.json", ("evaluate",)),
        ("report.html", ("evaluate",)),
    ):
        yield Case(f"hard link: {key} to a start-up file", partial(_hard_link, key), commands, key)


def _fifo(key: str, world: World) -> None:
    world.fifo(key)


def _fifos() -> Iterator[Case]:
    for key, commands in (
        ("events.jsonl", ("label", "evaluate")),
        ("job.toml", ("repair", "label")),
        ("metrics.json", ("evaluate",)),
        ("model/generator.json", ("draw", "export")),
        ("model/model.safetensors", ("draw",)),
        ("checkpoints/fit.json", ("train",)),
        ("checkpoints/history.jsonl", ("train_on",)),
        ("checkpoints/failed.txt", ("train_on",)),
        (f"{STEP}/state.safetensors", ("train_on",)),
        ("samples.zarr/X/c/0/0", ("evaluate",)),
        ("samples.zarr/zarr.json", ("evaluate", "sample")),
        ("pairs.zarr/plan.json", ("status", "verify", "label", "repair")),
        ("pairs.zarr/plan.copy.json", ("verify", "repair")),
        ("pairs.zarr/frame.json", ("verify", "label")),
        ("pairs.zarr/commits/00000003.json", ("status", "verify", "label", "repair")),
        ("pairs.zarr/labels/c/3/0", ("status", "verify", "repair", "refit")),
        ("pairs.zarr/drivers/a.json", ("status",)),
        ("pairs.zarr/notes", ("verify", "repair")),
    ):
        yield Case(f"fifo: {key}", partial(_fifo, key), commands, parts_of(key))


def _folder(key: str, world: World) -> None:
    (world.in_place_of(key) / "sub").mkdir(parents=True)
    (world.run / key / "sub" / "a.txt").write_text("a")


def _file(key: str, world: World) -> None:
    world.in_place_of(key).write_text("a file")


def _swapped() -> Iterator[Case]:
    for key, commands in (
        ("events.jsonl", ("label", "evaluate")),
        ("job.toml", ("repair", "label")),
        ("metrics.json", ("evaluate",)),
        ("report.html", ("evaluate",)),
        ("model/generator.json", ("draw", "refit")),
        ("checkpoints/fit.json", ("train",)),
        ("checkpoints/history.jsonl", ("train_on",)),
        ("pairs.zarr/plan.json", ("status", "verify", "label", "repair")),
        ("pairs.zarr/frame.json", ("verify", "label")),
        ("pairs.zarr/commits/00000003.json", ("status", "verify", "repair", "label")),
        ("pairs.zarr/labels/c/3/0", ("status", "verify", "repair")),
        ("pairs.zarr/drivers/a.json", ("status", "extend")),
    ):
        yield Case(f"folder in place of {key}", partial(_folder, key), commands, parts_of(key))
    for key, commands in (
        ("tensorboard", ("refit",)),
        ("checkpoints", ("train", "refit")),
        ("model", ("draw", "refit")),
        ("samples.zarr", ("sample", "evaluate")),
        ("pairs.zarr", ("status", "label", "refit")),
        ("pairs.zarr/commits", ("status", "verify", "repair", "label")),
        ("pairs.zarr/labels", ("verify", "repair", "refit")),
        ("pairs.zarr/labels/c", ("verify", "repair", "status")),
        ("pairs.zarr/transform", ("verify", "refit")),
        ("pairs.zarr/drivers", ("status", "extend")),
        ("pairs.zarr/events", ("extend",)),
        ("pairs.zarr/quarantine", ("repair",)),
        ("pairs.zarr/claims", ("repair", "extend")),
        ("pairs.zarr/extensions", ("extend",)),
    ):
        words = parts_of(key) + ("|shards are missing" if key == "pairs.zarr/labels" else "")
        yield Case(f"file in place of {key}", partial(_file, key), commands, words)


def _named(name: bytes, world: World) -> None:
    for folder in (world.run, world.run / "pairs.zarr", world.run / "pairs.zarr" / "commits", world.run / "checkpoints",
                   world.run / "pairs.zarr" / "labels" / "c", world.run / "tensorboard"):  # fmt: skip
        path = os.path.join(os.fsencode(folder), name)
        with open(path, "wb") as file:
            file.write(b"hello")


def _names() -> Iterator[Case]:
    commands = ("status", "verify", "repair", "label", "train_on")
    for words, name in (
        ("a line break", b"a\nsfg: all is well"),
        ("a terminal's words", b"a\x1b[2J\x1b]0;owned\x07b"),
        ("eight-bit controls", "a\x9b2Jb".encode()),
        ("marks of another direction", "a\u202etxt.exe".encode()),
        ("no UTF-8", b"a\xff\xfeb"),
        ("markup", b"[bold red]x"),
        ("a backslash and dots", b"..\\..\\x"),
        ("percent signs", b"..%2f..%2fx"),
        ("all of its length", b"x" * 255),
        ("a tilde", b"~"),
        ("a dash", b"--help"),
    ):
        yield Case(f"name: {words}", partial(_named, name), commands)
    yield Case("name: folders without end", _deep, ("status", "verify", "repair", "refit"))


def _deep(world: World) -> None:
    path = world.run / "pairs.zarr" / "labels" / "c"
    for _ in range(12):
        path = path / ("d" * 200)
    path.mkdir(parents=True)
    (path / "a").write_text("a")


def _rights(world: World) -> None:
    for key in ("pairs.zarr/commits/00000003.json", "events.jsonl", "model/generator.json"):
        (world.run / key).chmod(0o400)
    shutil.copy(world.run / "model" / "generator.json", world.run / "pairs.zarr" / "x.sh")
    (world.run / "pairs.zarr" / "x.sh").chmod(0o6755)


CASES = [
    *_links_of_the_output(),
    *_links_of_the_store(),
    *_links_that_read_well(),
    *_hard_links(),
    *_fifos(),
    *_swapped(),
    *_names(),
    Case("rights of all kinds", _rights, ("verify", "repair", "label")),
]
