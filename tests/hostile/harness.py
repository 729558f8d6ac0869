"""A small world around an output directory that a stranger handed over, and what a command must leave as it was in it.

    root/
        home/       HOME: start-up files of a shell, keys, letters; read and written by nobody
        victim/     what links of a hostile directory lead to; read and written by nobody
        work/       the current directory: the user's job.toml, and run/, which came from the stranger

Around a command everything but what the command may write is compared by a digest of names, kinds, modes, times, link
targets and contents. On Linux the kernel tells too of each file of home/ and victim/ that any thread or library opens
(inotify), so that reading is seen. A FIFO that somebody waits at is let go after a moment, and told.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import resource
import signal
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commands import Done, sfg
from numba.core.event import Event, install_recorder
from patience import patience

COMPILATION_S = 30.0  # of the kernels of one number of columns, where none are kept yet
PROCESSOR_LIMIT_S = 5.0
MEMORY_LIMIT = 400 * 2**20  # more than any command of the small job takes, less than any of the bombs
ADDRESS_SPACE_LIMIT = 3 * 2**30  # what a bomb may take of the machine that runs the tests, where nothing holds it back
# Marks of an error that nobody foresaw, or of a library's own words.
LIBRARY_WORDS = re.compile(
    r"Traceback|run again with --debug|\b[A-Z]\w*(Error|Exception|Warning)\b|Generic \w+ error|object_store|\[Errno|"
    r"os error \d|\bNoneType\b|unhashable|\bargument of type\b|not subscriptable|has no attribute|"
    r"must be real number|takes \d+ positional|unexpected keyword|Expecting value|Extra data:|list indices|"
    r"object is not|could not convert|invalid literal|cannot reshape|could not broadcast|h5py|state_dict|"
    r"maximum recursion|codec can't decode|not supported between|size mismatch for|cannot unpack"
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
BESIDE = {
    ".bashrc": "alias ll='ls -l'\n",
    ".profile": "export EDITOR=vi\n",
    ".netrc": "machine host login me password it\n",
    ".ssh/id_ed25519": "a private key\n",
    ".ssh/authorized_keys": "",
    "letters/1.txt": "Dear all\n",
}
VICTIM = {
    "secret.txt": "not for you\n",
    "table.csv": "x,y\n" + "1.5,2.5\n3.5,4.5\n" * 50,
    "folder/a.txt": "a",
    "folder/deep/b.txt": "b",
    "zarr.json": "{}",
    "state.json": "{}",
}


@dataclass
class World:
    """Where a case takes place.

    Attributes:
        root: of everything.
        allowed: places below the root that the command may change.
        fifos: FIFOs that a case laid.
    """

    root: Path
    allowed: list[Path] = field(default_factory=list)
    fifos: list[Path] = field(default_factory=list)

    @classmethod
    def make(cls, root: Path) -> World:
        """The world without an output directory."""
        for base, files in (("home", BESIDE), ("victim", VICTIM)):
            for name, text in files.items():
                path = root / base / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        (root / "work").mkdir()
        world = cls(root)
        world.allowed.append(world.run)
        return world

    @property
    def home(self) -> Path:
        """The user's home."""
        return self.root / "home"

    @property
    def victim(self) -> Path:
        """Files that links lead to."""
        return self.root / "victim"

    @property
    def work(self) -> Path:
        """The current directory of a command."""
        return self.root / "work"

    @property
    def run(self) -> Path:
        """The output directory, made by a stranger."""
        return self.work / "run"

    @property
    def ran(self) -> Path:
        """What the payload of a case makes where it runs."""
        return self.root / "ran"

    def in_place_of(self, key: str) -> Path:
        """A path of the output directory, emptied for something else; the folders above it are made."""
        path = self.run / key
        if path.is_dir() and not path.is_symlink():
            for child in sorted(path.rglob("*"), reverse=True):
                child.rmdir() if child.is_dir() and not child.is_symlink() else child.unlink()
            path.rmdir()
        elif os.path.lexists(path):
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def link(self, key: str, target: Path | str) -> None:
        """Put a link in place of what lies at a key of the output directory."""
        self.in_place_of(key).symlink_to(target)

    def fifo(self, key: str) -> None:
        """Put a FIFO in place of what lies at a key."""
        path = self.in_place_of(key)
        os.mkfifo(path)
        self.fifos.append(path)

    def move_to_victim(self, key: str, name: str = "moved") -> Path:
        """Move what lies at a key to the victim's place, and link to it: what reads through the link finds it good."""
        target = self.victim / name
        (self.run / key).rename(target)
        (self.run / key).symlink_to(target)
        return target


@dataclass(frozen=True)
class Seen:
    """What a command did, from outside."""

    done: Done
    changed: list[str]
    opened: list[str]
    waited_at: list[str]
    processor_s: float
    memory: int

    @property
    def said(self) -> str:
        """All that it printed."""
        return self.done.stdout + self.done.stderr


def observe(world: World, words: Sequence[str]) -> Seen:
    """Run `sfg WORDS` in the world's work/ and look at everything around."""
    before, peak = digest_of(world), _peak_memory(reset=True)
    with _opened_below([world.home, world.victim]) as opened, _letting_go(world.fifos) as waited_at:
        started = time.process_time()
        with _bounded_memory(), _bounded_time(), install_recorder("numba:compile") as compilations:
            done = sfg(world.work, *words, check=None)
        spent = time.process_time() - started - _outermost_s(compilations.buffer)
    memory = max(0, _peak_memory() - peak)
    after = digest_of(world)
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return Seen(done, changed, sorted(set(opened)), sorted(set(waited_at)), spent, memory)


def require_harmless(seen: Seen, *, names: str = "", statuses: Sequence[int] = (0, 1, 2)) -> None:
    """What holds of every command on whatever it was handed.

    Args:
        seen: of ``observe``.
        names: alternatives, separated by |; where the command fails its words name one of them.
        statuses: the exit statuses that are right.
    """
    assert not seen.changed, f"changed outside of the output directory: {seen.changed}"
    assert not seen.opened, f"read outside of the output directory: {seen.opened}"
    assert not seen.waited_at, f"waited at a FIFO: {seen.waited_at}"
    said = seen.said
    assert not (found := LIBRARY_WORDS.search(said)), f"{found[0]!r} is no plain word: {said}"
    assert not (control := CONTROL.search(said)), f"prints the control character {control[0]!r}"
    assert "\nsfg: all is well" not in f"\n{said}", f"a line that the stranger wrote: {said}"
    assert seen.done.returncode in statuses, f"exit status {seen.done.returncode}: {said}"
    if seen.done.returncode and names:
        assert any(name in said for name in names.split("|")), f"names none of {names}: {said}"
    assert seen.processor_s < patience(PROCESSOR_LIMIT_S), f"took {seen.processor_s:.1f} s"
    assert seen.memory < MEMORY_LIMIT, f"took {seen.memory / 2**20:.0f} MiB"


def digest_of(world: World) -> dict[str, str]:
    """What everything around the allowed places looks like, by its path; nothing is followed."""
    found: dict[str, str] = {}
    waiting = [world.root]
    while waiting:
        folder = waiting.pop()
        for entry in os.scandir(folder):
            path = Path(entry.path)
            facts = entry.stat(follow_symlinks=False)
            kind = stat.S_IFMT(facts.st_mode)
            if path in world.allowed and kind in (stat.S_IFDIR, stat.S_IFREG):
                continue
            content = ""
            if kind == stat.S_IFLNK:
                content = os.readlink(path)
            elif kind == stat.S_IFREG:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            elif kind == stat.S_IFDIR:
                waiting.append(path)
            # The times of work/ change where the command may make run/ anew.
            times = "" if path == world.work else f" {facts.st_mtime_ns}"
            found[path.relative_to(world.root).as_posix()] = f"{facts.st_mode:o}{times} {content}"
    return found


# Reading, by inotify: opens and accesses, of any library and thread.

_IN_OPEN, _IN_ACCESS, _EVENT = 0x20, 0x01, struct.Struct("iIII")
# Numbers of open, openat and openat2.
_OPEN_CALLS = {"x86_64": {"2", "257", "437"}, "aarch64": {"56", "437"}}.get(platform.machine(), set())


@contextlib.contextmanager
def _opened_below(folders: Sequence[Path]) -> Iterator[list[str]]:
    """Names of the files and folders below some that are opened within; empty where the kernel has no inotify."""
    opened: list[str] = []
    if not sys.platform.startswith("linux"):
        yield opened
        return
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert handle >= 0, os.strerror(ctypes.get_errno())
    watched: dict[int, Path] = {}
    try:
        for folder in folders:
            for level in (folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())):
                watched[libc.inotify_add_watch(handle, os.fsencode(level), _IN_OPEN | _IN_ACCESS)] = level
        yield opened
        with contextlib.suppress(BlockingIOError):
            while content := os.read(handle, 2**16):
                start = 0
                while start < len(content):
                    watch, _, _, length = _EVENT.unpack_from(content, start)
                    start += _EVENT.size + length
                    name = content[start - length : start].rstrip(b"\0").decode(errors="replace")
                    opened.append(str(watched[watch] / name) if watch in watched else name)
    finally:
        os.close(handle)


def _opening() -> set[str]:
    """What the threads of this process open at this moment; the same, always, where the kernel does not tell."""
    found, is_told = set(), False
    for thread in Path("/proc/self/task").glob("*/syscall"):
        with contextlib.suppress(OSError):
            call, is_told = thread.read_text(), bool(_OPEN_CALLS)
            if call.split(" ")[0] in _OPEN_CALLS:
                found.add(f"{thread.parent.name} {call}")
    return found if is_told else {"any"}


def _has_reader(fifo: Path) -> bool:
    """Whether somebody waits to read; he reads its end now."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _has_writer(fifo: Path) -> bool:
    """Whether somebody waits to write; he is let in now."""
    try:
        handle = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        time.sleep(0.002)
        return bool(os.read(handle, 2**16))
    except BlockingIOError:  # it is open, and nothing was written yet
        return True
    finally:
        os.close(handle)


@contextlib.contextmanager
def _letting_go(fifos: Sequence[Path]) -> Iterator[list[str]]:
    """Within, whoever opens one of the FIFOs gets its end at once; which ones."""
    waited_at: list[str] = []
    if not fifos:
        yield waited_at
        return
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.25):
            waiting = _opening()
            if not is_over.wait(0.02) and waiting & _opening():  # else somebody who opens one without waiting is met
                waited_at.extend(fifo.name for fifo in fifos if _has_reader(fifo) or _has_writer(fifo))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield waited_at
    finally:
        is_over.set()
        thread.join()


# Memory.


def _peak_memory(*, reset: bool = False) -> int:
    """The most memory that this process has held, bytes; with ``reset`` since now on, where the kernel can."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """Within, no more than ADDRESS_SPACE_LIMIT can be taken beside what is there, where the system can say that."""
    try:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    except OSError:
        yield
        return
    limit = size + ADDRESS_SPACE_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _outermost_s(events: Sequence[tuple[float, Event]]) -> float:
    """How long kernels were compiled, which happens once a machine; a compilation may begin others."""
    depth, begun, total = 0, 0.0, 0.0
    for at, event in events:
        depth += 1 if event.is_start else -1
        if event.is_start and depth == 1:
            begun = at
        elif depth == 0:
            total += at - begun
    return total


@contextlib.contextmanager
def _bounded_time() -> Iterator[None]:
    """Within, a command that spins is ended soon after it has taken more than it may."""

    def end(*_: object) -> None:
        raise AssertionError(f"spins: it took more than {PROCESSOR_LIMIT_S:g} s of the processor")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, patience(PROCESSOR_LIMIT_S + COMPILATION_S))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# Cases.


@dataclass(frozen=True)
class Case:
    """One hostile thing.

    Attributes:
        name: of the case.
        spoil: lays it in a world that holds a sound run.
        commands: that meet it, of ``COMMANDS``.
        names: what a command that fails must name, alternatives separated by |.
        statuses: exit statuses that are right, (0, 1, 2) where going on by doing without it is as good as refusing it.
    """

    name: str
    spoil: Callable[[World], None]
    commands: tuple[str, ...]
    names: str = ""
    statuses: tuple[int, ...] = (0, 1, 2)


REFUSED = (1, 2)


def parts_of(*keys: str) -> str:
    """What a message about these keys may name: a whole key, or one of its parts; of the store's, those below it."""
    parts = [part for key in keys for part in (key, *key.split("/")) if part != "pairs.zarr" or key == part]
    return "|".join(dict.fromkeys(parts)) + ("|no generator" if any(key.startswith("model") for key in keys) else "")
