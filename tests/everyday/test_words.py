"""Every command, option and key, fed what no one of them takes: one message in plain words, that names it."""

import contextlib
import io
import re
import warnings
from typing import Literal

import numpy as np
import pytest
import typer
from commands import sfg
from examples import PROFILE
from pydantic import BaseModel, ConfigDict

import sfg_dist
from sfg_dist.cli import main as cli
from sfg_dist.cli.command import aligned
from sfg_dist.job.arguments import whole_number
from sfg_dist.job.config import Job, load_job, resolve_job
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.toml_documents import apply_override, checked
from sfg_dist.job.words import printable, shown
from sfg_dist.launch.profile import Profile, load_profile
from sfg_dist.studies.compare.page import with_error

VALUES = [
    *re.findall(
        r"\S+",
        r"""
        -1 0 -0 +3 1.5 -1.5 0.5 nan NaN inf -inf 1e30 -1e30 1e400 1e-400 1e3 1_000 1,000 1.000,5 0x10 0o17 0b1 ten 1k
        10% 1/2 1e 1e+ .5 5. --5 ++5 1__0 01 1e3.5 3-0 0-9 2**3 1j true false True yes null None none auto [] [1]
        [1,2,3] [[1]] [a,b] ['a'] [1,'a'] {} {a=1} {a={b=1}} 2024-06-01 12:30:00 2024-02-31 2024-06-01T12:00:00Z
        '' "" ' " ''' [ ] { } = == a=b #x x#y ../../.. /dev/null/x /proc/none . .. // a//b - \ C:\Users\x s3:// s3:///x
        gs:// ftp://h/x http://user:secret@h/x file:///x :// $(x) `x` %s %(a)s {0} ${HOME} ;ls | & * ? ( ) .* (?P<x>
        [^ ^$ \d+ a.b.c <object_at_0x7f> ~nobody_of_that_name/x
        """,
    ),
    *("", " ", "\t", "\n", "a\nb", "a\nb=1", "\r\n", "\x1b[31mred\x1b[0m", "\x07", "\x00", "a\x00b", "\udcff", "\x7f"),
    *("\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT THREE}", "\N{FULLWIDTH DIGIT ONE}", "\N{MINUS SIGN}1"),
    *("\N{VULGAR FRACTION ONE HALF}", "ü", "\N{GRINNING FACE}", "\u202e", "a" * 300, "9" * 500, "x" * 5000, "[" * 3000),
]  # fmt: skip
# Words of libraries and of Python, of which a user of this tool has never heard.
FOREIGN = re.compile(
    r"traceback|pydantic|typer|click|tomllib|torch|zarr\.|pyarrow|numpy\.|errno|input should|should match|[^-l]type=|"
    r"regex|pattern|codec can't|object at 0x[0-9a-f]{3}|is not a valid (int|float)|\w+error:|not in the range|\^\(|\\d",
    re.IGNORECASE,
)
JOB = '[data]\nsource = "absent.npy"\n[executor]\nkind = "inline"\n'
LONGEST = 700


def faults_of(message, value):
    """What a message has that it must not; the value itself may stand in it."""
    for part in (value, repr(value)[1:-1], value[:60], repr(value[:60])[1:-1]):
        if len(part) > 1:
            message = message.replace(part, "")
    faults = [found.group() for found in FOREIGN.finditer(message)]
    faults += re.findall(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", message)
    return [*faults, f"{len(message)} characters"] if len(message) > LONGEST else faults


def leaves(model, path=()):
    """Every key of a model of tables, dotted."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            yield from leaves(inner, (*path, name))
        else:
            yield ".".join((*path, name))


def refusal(call, *arguments):
    """The message of a ConfigError; None where the call takes its arguments."""
    try:
        call(*arguments)
    except ConfigError as error:
        return str(error)
    return None


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


def override(tables, assignment, root):
    apply_override(tables, assignment, root)
    checked(root, tables, "job.toml")


@pytest.mark.parametrize("root", [Job, Profile])
def test_every_key_refuses_in_words(root):
    assert len(VALUES) >= 100
    document = {"data": {"source": "moons"}} if root is Job else {}
    for number, key in enumerate(leaves(root)):
        refused = 0
        kept = 1 if PROFILE == "check" else 3  # of each four values
        for value in (value for place, value in enumerate(VALUES) if (place + number) % 4 < kept):
            tables = {name: dict(table) for name, table in document.items()}
            message = refusal(override, tables, f"{key}={value}", root)
            if message is not None:
                refused += 1
                assert not faults_of(message, value), f"{key}={value!r}: {message}"
                assert key.rpartition(".")[2] in message, f"{key}={value!r}: {message}"
        assert refused or root is Profile, key


COMMAND = typer.main.get_command(cli.app)
# What makes a command refuse before any work, whatever an option is given.
WORDS = {
    "sample": ["absent-model"], "export": ["absent-model"], "submit": ["job.toml", "--to", "ray"], "jobs": [],
    "status": ["absent"], "verify": ["absent"], "repair": ["absent"], "logs": ["absent"], "cancel": ["absent"],
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
    """A command's arguments and the options that take a value: its name, and the words with a value in its place."""
    base = WORDS.get(name, ["job.toml"])
    for param in COMMAND.commands[name].params:
        if param.param_type_name == "argument":
            yield param.metavar, lambda value, rest=base[1:]: [*rest, "--", value]
        elif not param.is_flag and param.name != "help":
            option = max(param.opts, key=len)
            yield option, lambda value, option=option: [*base, f"{option}={value}"]


@pytest.mark.parametrize("name", sorted(COMMAND.commands))
@pytest.mark.slow
def test_every_command_refuses_in_words(job, name):
    inputs = list(inputs_of(name))
    for number, value in enumerate(VALUES):
        for each in range(0, len(inputs), 4):  # a quarter of the inputs a value
            what, words = inputs[(number + each) % len(inputs)]
            status, said = invoke([name, *words(value)], job.parent)
            assert status in (0, 1, 2), (what, value, said)
            if status:
                assert len([line for line in said.splitlines() if line.startswith("sfg: ")]) == 1, (what, value, said)
                assert not faults_of(said, value), (what, value, said)
    assert [path.name for path in job.parent.iterdir()] == ["job.toml"], "a refused command left something"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "m", "--num", "ten"], "--num: expected a whole number such as 10 or 1e6, got 'ten'"),
        (["sample", "m", "--seed", "-1"], "--seed: expected a whole number of 0 or more, got -1"),
        (["sample", "m", "--seed", "1.5"], "--seed: expected a whole number"),
        (["sample", "", "--seed", "1"], "what: expected the name of a file or folder, got ''"),
        (["status", "absent", "--interval", "nan"], "--interval: expected a number"),
        (["scale", "job.toml", "--workers", "1,,2"], "--workers '1,,2': expected whole numbers above 0"),
        (["scale", "job.toml", "--repeats", "1e9"], "--repeats: expected at most 1,000"),
        (["submit", "job.toml", "--to", "ray", "--seeds", "4-0"], "--seeds '4-0': 4-0 goes down: write 0-4"),
        (["submit", "job.toml", "--to", "ray", "--seeds", "0-999999999999"], "that is more than 10,000 runs"),
        (["submit", "job.toml", "--to", "ray", "--seeds", "1,1"], "a seed is there twice"),
        (["run", "job.toml", "--set", "labels.num_pairs=1e30"], "at most 9,007,199,254,740,992, got 1e+30"),
        (["run", "job.toml", "--set", "labels.num_pairs=1e15"], "a store has 10,000,000 at most"),
        (["run", "job.toml", "--set", "train.width=1e6"], "train.width must be a whole number above 0 and at most"),
        (["run", "/dev/zero"], "job file /dev/zero is larger than 4 MiB"),
        (["run"], "Missing argument 'JOB.toml|TABLE'; `sfg run --help` shows what it takes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(job, words, said):
    status, message = invoke(words, job.parent)
    assert status == 2
    assert said in message


def test_wrong_options_are_told_as_json_too(job):
    assert '"error": "--seed: expected' in sfg(job.parent, "sample", "m", "--seed", "x", "--json", check=2).stdout


TEXT = JOB.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + TEXT,
        TEXT.replace(b"\n", b"\r\n"),
        TEXT.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + TEXT.replace(b"\n", b"\r\n").replace(b" = ", b"\t=\t"),
        b"\n\n\t" + TEXT + b"   \n# gr\xc3\xbc\xc3\x9fe",
    ],
)
def test_a_job_file_of_any_editor_is_read(job, content):
    job.write_bytes(content)
    assert load_job(job).data.source == "absent.npy"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (JOB.encode("utf-16"), "is in UTF-16: save it in UTF-8"),
        (JOB.encode("utf-16-le"), "zero bytes"),
        ("# grüße\n".encode("latin-1") + TEXT, "byte 0xfc in line 1 is not UTF-8"),
        (b"\x93NUMPY\x01\x00", "zero bytes"),
        (b"", "data is required"),
        (b'[data]\nsource = "a.csv', "line 2, 'source = \"a.csv': a quote"),
        (b'[data]\nsource = "C:\\Users\\x.csv"', "a backslash within double quotes is written twice"),
        (b"[data]\nsource = a.csv", "write text in quotes"),
        (
            "[data]\nsource = \N{LEFT DOUBLE QUOTATION MARK}a\N{RIGHT DOUBLE QUOTATION MARK}".encode(),
            "quotes are curly",
        ),
        (b'[data]\nsource = "a"\nsource = "b"', "line 3, 'source = \"b\"': the key is there twice"),
        (b'[data]\nsource = "a"\n[data]\n', "the table is there twice"),
        (b"data.source", "expected key = value"),
        (b"a,b\n1,2\n", "line 1, 'a,b': expected key = value"),
        (b"x = " + b"9" * 5000, "thousands of digits"),
        (b"x = " + b"[" * 3000, "too deep"),
        (b"x = 2024-02-31", "is not valid TOML"),
    ],
)
def test_a_file_that_is_no_job_is_named_for_what_it_is(job, content, said):
    job.write_bytes(content)
    message = refusal(load_job, job)
    assert message.startswith((f"job file {job}", str(job)))
    assert said in message
    assert not faults_of(message, str(job))


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("output.dir=12", "12"), ("output.dir=2024-06-01", "2024-06-01"), ("output.dir=true", "true"),
        ("output.dir=1_000", "1_000"), ("output.dir=1e3", "1e3"), ("output.dir= a b ", "a b"), ("output.dir='a'", "a"),
        ("output.dir=inf", "inf"), ("output.dir=12:30:00", "12:30:00"), ("data.array=7", "7"),
        ("executor.address=10", "10"), ("data.columns=[1, 2]", ["1", "2"]), ("data.columns=[a, b]", ["a", "b"]),
        ("data.columns=['a','b']", ["a", "b"]), ("data.seed=1e3", 1000), ("train.seed=1_000", 1000),
        ("labels.num_pairs=1e6", 10**6), ("train.num_workers=2.0", 2), ("train.num_workers=[1, 2e0]", [1, 2]),
        ("labels.tolerance=.5", 0.5),
        ("train.max_time_s=5.", 5.0),
        ("data.seed=01", 1),
        ("labels.t_min=auto", "auto"), ("train.encoder=true", True),
    ],
)  # fmt: skip
def test_the_type_of_the_key_decides(job, assignment, value):
    table, _, key = assignment.partition("=")[0].partition(".")
    assert getattr(getattr(load_job(job, [assignment]), table), key) == value


def test_a_key_of_several_kinds():
    class Table(BaseModel):
        model_config = ConfigDict(strict=True)
        header: Literal["auto"] | bool = "auto"
        bounds: Literal["observed", "none"] | dict[str, list[float]] = "observed"
        size: int | str = 1

    class Root(BaseModel):
        data: Table

    def given(*assignments):
        document = {}
        for assignment in assignments:
            apply_override(document, assignment, Root)
        return checked(Root, document, "job").data

    table = given("data.header=true", "data.bounds.a=[0, 1]", "data.size=3")
    assert (table.header, table.bounds, table.size) == (True, {"a": [0, 1]}, 3)
    assert given("data.header=auto", "data.bounds=none").bounds == "none"
    assert refusal(given, "data.header=1").endswith("data.header must be 'auto', or true or false, got 1")
    assert "'observed' or 'none', or a table of names, each with a list" in refusal(given, "data.bounds=3")


@pytest.mark.parametrize("text", ["-1", "0", "1.5", "nan", "inf", "ten", "1e30", "true", "1e-3", "''", "[1]", "1,000"])
def test_a_count_that_is_none(job, text):
    said = refusal(load_job, job, [f"labels.num_pairs={text}"])
    assert "labels.num_pairs must be a whole number above 0" in said


def test_words_of_a_site():
    memory = refusal(load_profile, None, ["slurm.memory=16G"])
    assert "did you mean slurm.memory_per_node?" in memory
    assert "did you mean slurm.gpus_per_node?" in refusal(load_profile, None, ["slurm.gpus=2"])
    assert '"1:30:00"' in refusal(load_profile, None, ["slurm.walltime=soon"])
    for word in ("UNLIMITED", "infinite", "90", "1:30:00", "2-12"):
        assert load_profile(None, [f"slurm.walltime={word}"]).slurm.walltime == word
    assert load_profile(None, ["slurm.account=12"]).slurm.account == "12"
    assert "slurm.nodes must be a whole number" in refusal(load_profile, None, ["slurm.nodes=true"])


def test_columns_of_jobs_stay_apart():
    rows = [("id", "ray", "unknown: it was not sent", "quickstart", "runs/a"), ("i", "slurm", "running", "x\x1b", "b")]
    first, second = aligned(rows)
    assert first == "id  ray    unknown: it was not sent  quickstart  runs/a"
    assert second == "i   slurm  running                   x\\x1b       b"
    assert aligned([]) == []


def test_absurd_likelihoods_fit_their_column():
    assert with_error(-163296656082398880.0, 2.5e16, digits=2) == "\N{MINUS SIGN}1.63e17 ± 2.50e16"
    assert with_error(-12.345, 0.1, digits=2) == "\N{MINUS SIGN}12.35 ± 0.10"


class Frame:
    def __repr__(self):
        return "the whole table\n" * 1000


@pytest.mark.parametrize("job", [Frame(), None, 3, b"job.toml", ["job.toml"], np.zeros((3, 2)), len, Job])
def test_run_says_what_it_takes(job):
    said = refusal(sfg_dist.run, job)
    assert said.startswith("job: expected the path of a job file, a mapping of its tables or a Job, got ")
    assert len(said) < LONGEST
    assert "the whole table" not in said


def test_a_job_takes_what_means_the_same(tmp_path):
    job = resolve_job(
        {
            "data": {"source": tmp_path / "a.npy", "columns": ("a", "b"), "split": np.array([0.8, 0.1, 0.1])},
            "labels": {"num_pairs": np.int64(5000), "seed": np.uint8(3), "tolerance": np.float32(0.5)},
            "train": {"encoder": np.True_, "num_workers": (1, np.int32(2))},
            "output": {"dir": tmp_path},
        }
    )
    assert (job.data.source, job.data.columns) == (str(tmp_path / "a.npy"), ["a", "b"])
    assert (job.labels.num_pairs, job.labels.seed, job.labels.tolerance) == (5000, 3, 0.5)
    assert (job.train.encoder, job.train.num_workers, job.output.dir) == (True, [1, 2], str(tmp_path))


@pytest.mark.parametrize(
    "value", [Frame(), np.zeros((2, 2)), np.datetime64("2024-06-01"), b"a", {1}, 1j, object(), len]
)
def test_a_key_that_is_given_an_object(value):
    said = refusal(resolve_job, {"data": {"source": "moons", "max_rows": value}})
    assert "data.max_rows must be a whole number above 0, got " in said
    assert not faults_of(said, "")
    said = refusal(resolve_job, {"data": {"source": value}})
    assert "data.source must be text" in said


@pytest.mark.parametrize("function", ["open_pairs", "Generator.load"])
@pytest.mark.parametrize("place", [None, 3, Frame(), b"runs", ["a"]])
def test_places_of_calls(function, place):
    name, _, method = function.partition(".")
    call = getattr(sfg_dist, name)
    said = refusal(getattr(call, method) if method else call, place)
    assert said.startswith("path: expected a path or URL, got ")
    assert "the whole table" not in said


@pytest.fixture(scope="module")
def generator():
    from sfg_dist.data import Transform
    from sfg_dist.model import MLP

    transform = Transform.fit(np.random.default_rng(0).standard_normal((100, 2)), ("a", "b"))
    return sfg_dist.Generator(MLP(2, width=8, depth=1).eval(), transform)


def test_a_number_of_rows_is_what_it_means(generator):
    expected = generator.sample(100, seed=3, start=10)
    for n in (1e2, np.int64(100), np.float32(100), np.uint8(100), np.array(100)):
        np.testing.assert_array_equal(generator.sample(n, seed=np.int16(3), start=1e1), expected)


@pytest.mark.parametrize("n", [1.5, -1, True, "ten", None, np.nan, np.inf, 1e30, [3], np.array([1, 2]), Frame()])
@pytest.mark.parametrize("name", ["n", "seed", "start"])
def test_a_number_of_rows_that_is_none(generator, name, n):
    arguments = {"n": 1} | {name: n}
    said = refusal(lambda: generator.sample(**arguments))
    assert said.startswith(f"{name}: expected a whole number of 0 or more, got ")
    assert len(said) < LONGEST


@pytest.mark.parametrize("value", ["x", None, [1], Frame(), True, np.zeros(2)])
@pytest.mark.parametrize("name", ["t_min", "tolerance", "batch_size", "num_evaluations"])
def test_settings_of_labels(name, value):
    rows = np.zeros((2, 1))
    said = refusal(lambda: sfg_dist.label_latents(rows, rows, **{name: value}))
    assert said.startswith(f"{name}: expected a ")
    assert len(said) < LONGEST


@pytest.mark.slow
def test_settings_of_labels_that_mean_the_same():
    rows = np.random.default_rng(0).standard_normal((6, 1))
    expected = sfg_dist.label_latents(rows, rows, num_evaluations=6)
    same = {"num_evaluations": 6e0, "batch_size": np.int64(1024), "t_min": np.float64(1e-4)}
    np.testing.assert_array_equal(sfg_dist.label_latents(rows, rows, **same), expected)


def test_values_in_words():
    assert shown("a" * 100) == f"{'a' * 60!r} and 40 more characters"
    assert shown(10**5000) == "a number of about 5,001 digits"
    assert shown(list(range(1000))) == "a list of 1,000"
    assert shown(Frame()) == "an object of type Frame"
    assert printable("ä\x1b\udcff\n") == "ä\\x1b\\udcff\n"
    assert whole_number("n", 5.0) == 5


def test_an_unknown_error_keeps_its_kind_and_an_errors_number_is_no_word(job, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied", "/a/b")

    monkeypatch.setattr("sfg_dist.cli.command.load", fail)
    monkeypatch.setattr("sfg_dist.cli.main.load", fail)
    _, said = invoke(["label", "job.toml"], job.parent)
    assert said.startswith("sfg: /a/b: Permission denied (run again")
