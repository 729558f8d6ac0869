"""Every command, option and key, fed what no one of them takes: one message in plain words, that names it."""

import contextlib
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import typer
from commands import sfg

import sfg_dist
from sfg_dist import cli
from sfg_dist.config import Job, load_job
from sfg_dist.errors import ConfigError
from sfg_dist.launch.profile import Profile, load_profile

NUMBERS = (
    "-1 0 -0 +3 1.5 -1.5 0.5 nan NaN inf -inf 1e30 -1e30 1e400 1e-400 1e3 1_000 1,000 1.000,5 0x10 0o17 0b1 ten 1k 10% "
    "1/2 1e 1e+ .5 5. --5 ++5 1__0 01 ½ ² ٣ １２ Ⅷ ∞ −1 1e3.5 3-0 0-9 2**3 1j"
).split()
KINDS = (
    "true false True yes null None none auto [] [1] [1,2,3] [[1]] [a,b] ['a'] [1,'a'] {} {a=1} {a={b=1}} 2024-06-01 "
    "12:30:00 2024-02-31 2024-06-01T12:00:00Z '' \"\" ' \" ''' \"\"\" [ ] { } = == a=b #x x#y"
).split()
NASTY = [
    *("", " ", "\t", "\n", "a\nb", "a\nb=1", "\r\n", "\x1b[31mred\x1b[0m", "\x07", "\x00", "a\x00b", "\udcff", "\u202e", "\x7f"),
    *("~nobody_of_that_name/x", "../../..", "/dev/null/x", "/proc/none", ".", "..", "//", "a//b", "-", "\\", "C:\\Users\\x"),
    *("s3://", "s3:///x", "gs://", "ftp://h/x", "http://user:secret@h/x", "file:///x", "://", "s3://b\n/x"),
    *("$(x)", "`x`", "%s", "%(a)s", "{0}", "${HOME}", ";ls", "|", "&", "*", "?", "(", ")", ".*", "(?P<x>", "[^", "^$", "\\d+"),
    *("ü", "日本語", "😀", "e\u0301", "a" * 300, "9" * 500, "x" * 5000, "[" * 200, "[" * 3000, "." * 50, "a.b.c", "<object at 0x7f>"),
]  # fmt: skip
VALUES = [*NUMBERS, *KINDS, *NASTY]
# Of libraries and of Python, none of which a user of this tool has heard of.
FOREIGN = re.compile(
    r"traceback|pydantic|typer|click|tomllib|torch|zarr\.|pyarrow|numpy\.|errno|input should|should match|[^-l]type=|regex|"
    r"pattern|codec can't|0x7f[0-9a-f]{6}|object at 0x[0-9a-f]{3}|is not a valid|valueerror|typeerror|keyerror|"
    r"attributeerror|overflowerror|filenotfounderror|unicode\w*error|recursionerror|oserror|not in the range|\^\(|\\d",
    re.IGNORECASE,
)
JOB = '[data]\nsource = "absent.npy"\n[executor]\nkind = "inline"\n'


def foreign_words(message, value):
    """What a message says that it must not; the value itself may stand in it."""
    for part in (value, repr(value)[1:-1], value[:60], repr(value[:60])[1:-1]):
        if len(part) > 1:
            message = message.replace(part, "")
    return FOREIGN.findall(message)


def check_message(message, value):
    assert not foreign_words(message, value), message
    assert len(message) < 700, message
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", message), ascii(message)


def leaves(model, path=()):
    """Every key of a model of tables, dotted."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            yield from leaves(inner, (*path, name))
        else:
            yield ".".join((*path, name))


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


@pytest.mark.parametrize("table", list(Job.model_fields))
def test_every_key_of_a_job_refuses_in_words(job, table):
    assert len(VALUES) >= 100
    for key in (key for key in leaves(Job) if key.startswith(f"{table}.")):
        refused = 0
        for value in VALUES:
            try:
                load_job(job, [f"{key}={value}"])
            except ConfigError as error:
                refused += 1
                message = str(error)
                check_message(message.removeprefix(str(job)), value)
                assert key.split(".")[1] in message, f"{key}={value!r}: {message}"
        assert refused, key


def test_every_key_of_a_profile_refuses_in_words():
    for key in leaves(Profile):
        for value in VALUES:
            try:
                load_profile(None, [f"{key}={value}"])
            except ConfigError as error:
                check_message(str(error), value)
                assert key.rpartition(".")[2] in str(error), f"{key}={value!r}: {error}"


COMMAND = typer.main.get_command(cli.app)
# What makes a command refuse, whatever an option is given, before any work.
WORDS = {
    "sample": ["absent-model"], "export": ["absent-model"], "scale": ["job.toml"], "submit": ["job.toml", "--to", "ray"],
    "status": ["absent"], "verify": ["absent"], "repair": ["absent"], "logs": ["absent"], "cancel": ["absent"],
    "jobs": [],
}  # fmt: skip


def invoke(words, directory):
    """Exit status and what stderr was told; the tree of commands is built once, which takes longer than all else."""
    told = io.StringIO()
    with warnings.catch_warnings(), contextlib.chdir(directory), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(told), pytest.raises(SystemExit) as end:
            COMMAND.main(words, prog_name="sfg")
    return end.value.code, told.getvalue()


def inputs_of(name):
    """A command's options that take a value, and its arguments, as lists of words before and after the value."""
    base = WORDS.get(name, ["job.toml"])
    for param in COMMAND.commands[name].params:
        if param.param_type_name == "argument":
            yield param.name, lambda value, base=base: ["--", value, *[]] if len(base) < 2 else [*base[1:], "--", value]
        elif not param.is_flag and param.name != "help":
            option = max(param.opts, key=len)
            yield option, lambda value, option=option: [*base, f"{option}={value}"]


@pytest.mark.parametrize("name", sorted(COMMAND.commands))
def test_every_command_refuses_in_words(job, name):
    """Each value goes to one of the command's inputs in turn."""
    inputs = list(inputs_of(name))
    for number, value in enumerate(VALUES):
        for each in range(0, len(inputs), 4):  # several, so that each input meets many kinds
            what, words = inputs[(number + each) % len(inputs)]
            status, said = invoke([name, *words(value)], job.parent)
            assert status in (0, 1, 2), (what, value, said)
            if status:
                lines = [line for line in said.splitlines() if line.startswith("sfg: ")]
                assert len(lines) == 1, (what, value, said)
                check_message(said, value)
    assert sorted(path.name for path in job.parent.iterdir()) == ["job.toml"], "a refused command left something"
