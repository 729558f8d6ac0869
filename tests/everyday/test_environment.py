"""Where the tool runs: beside files of the user, with odd temporary directories, without a home that can be written."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numba.core.caching
import numpy as np
import pytest
from commands import sfg
from patience import patience

import sfg_dist
from sfg_dist.distributed import cluster
from sfg_dist.job import kernel_cache, paths, search_path
from sfg_dist.job.config import resolve_job
from sfg_dist.job.errors import ClusterError, ConfigError, StoreError
from sfg_dist.job.kernel_cache import cached_njit
from sfg_dist.job.paths import expanded, private_folder, spare_home
from sfg_dist.job.search_path import PACKAGE_ROOT, python_command, without_users_files
from sfg_dist.pipeline.pipeline import Pipeline

# Names of the standard library and of packages; "python -m" itself imports some others before any line of ours.
PLANTED = ("zarr", "numpy", "json", "torch", "random", "ray", "dask", "pyarrow", "pydantic", "typer", "rich", "numba",
           "secrets", "statistics", "tempfile", "obstore", "psutil", "sfg")  # fmt: skip
SMALL = """
[data]
source = "moons"
max_rows = 300
[labels]
num_pairs = 256
shard_rows = 128
batch_size = 64
num_evaluations = 8
[executor]
kind = "inline"
"""


@pytest.fixture
def beside(tmp_path):
    """A folder with a job and a file of the user for each name, which says that it was imported."""
    (tmp_path / "job.toml").write_text(SMALL)
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'imported')!r}, 'a').write('{name} ')\nraise SystemExit"
        )
    return tmp_path


def run(folder, *words, environment=None):
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=patience(200),
        env=os.environ | {"PYTHONPATH": PACKAGE_ROOT} | (environment or {}),
    )  # fmt: skip
    assert not (folder / "imported").exists(), (folder / "imported").read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_command_imports_no_file_of_the_user(beside):
    before = {"PYTHONPATH": f"{PACKAGE_ROOT}{os.pathsep}"}  # an empty entry is the working directory
    assert run(beside, sys.executable, "-m", "sfg_dist", "--version", environment=before).startswith("sfg_dist ")


@pytest.mark.slow
def test_a_child_imports_no_file_of_the_user(beside, monkeypatch):
    monkeypatch.chdir(beside)
    monkeypatch.syspath_prepend("")
    monkeypatch.syspath_prepend(str(beside))
    run(beside, *python_command("sfg_dist", "--version"), environment={"PYTHONPATH": f"{beside}{os.pathsep}"})


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("words", [["label", "job.toml"], ["plan", "job.toml"]])
def test_labels_and_a_plan_beside_files_of_the_user(beside, words):
    run(beside, sys.executable, "-m", "sfg_dist", *words)


def test_the_search_path_without_the_users_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    libraries = str(tmp_path / "lib" / "site-packages")
    assert without_users_files(["", ".", str(tmp_path), libraries, f"{tmp_path}/"]) == [libraries]
    monkeypatch.setattr(search_path, "PACKAGE_ROOT", str(tmp_path))  # a checkout that is run where it lies
    assert without_users_files(["", libraries]) == [libraries, str(tmp_path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path), libraries]))
    assert search_path.inherited_path("first") == f"first{os.pathsep}{libraries}"
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.chdir(site)  # somebody works within the libraries
    assert without_users_files([str(site)]) == [str(site)]


@pytest.mark.parametrize("script", ["{sfg} --version >&-", "mkdir gone; cd gone; rmdir ../gone; ! {sfg} jobs 2>&1"])
@pytest.mark.slow
def test_without_streams_or_a_working_directory(tmp_path, script):
    command = f"{sys.executable} -m sfg_dist"
    told = run(tmp_path, "bash", "-c", script.format(sfg=command))
    assert told in ("", "sfg: the working directory was removed: change to another one\n")


# Directories.


@pytest.mark.parametrize("kind", ["short", "long", "odd", "absent", "file", "full"])
def test_ray_gets_a_short_directory_that_only_this_user_enters(tmp_path, monkeypatch, kind):
    place = tmp_path / {"long": "x" * 100, "odd": "\N{LATIN SMALL LETTER U WITH DIAERESIS}"}.get(kind, "d")
    if kind == "file":
        place.touch()
    elif kind != "absent":
        place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(cluster, "MAX_BASE", len(str(tmp_path)) + 10)
    if kind == "full":
        monkeypatch.setattr(cluster, "LEAST_ROOM", 1 << 60)
        said = r"has less than .* MiB free.*Set TMPDIR to a local directory"
        with pytest.raises(ClusterError, match=said), cluster.session_directory():
            pass
        return
    with cluster.session_directory() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == os.getuid()
        assert str(folder).isascii()
        assert (folder.parent == place) == (kind == "short")
    assert not folder.exists()


def test_no_directory_at_all_names_the_variable(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr(cluster, "_unfit", lambda base: "cannot be written (Read-only file system)")
    with pytest.raises(ClusterError, match=r"/nowhere cannot be written.*Set TMPDIR"), cluster.session_directory():
        pass


def add_one(x):
    return x + 1


@pytest.fixture
def read_only(monkeypatch):
    """Numba may write neither beside the package nor into the home."""
    monkeypatch.setattr(
        numba.core.caching.CompileResultCacheImpl, "_locator_classes", [numba.core.caching.UserProvidedCacheLocator]
    )
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", "")


def test_kernels_are_kept_in_a_private_folder_where_nothing_else_can_be_written(read_only, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cached_njit()(add_one)(1) == 2
    (folder,) = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.rglob("*.nbi"))


def test_kernels_are_compiled_anew_where_no_folder_is_private(read_only, monkeypatch):
    monkeypatch.setattr(kernel_cache, "private_folder", lambda name: None)
    assert cached_njit()(add_one)(1) == 2


def test_processes_that_compile_a_kernel_for_other_types_keep_a_file_each(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_cache.config, "CACHE_DIR", str(tmp_path))
    one, other = (kernel_cache.cache_file(cached_njit()(add_one)) for _ in range(2))
    monkeypatch.setattr(type(other), "_load_data", lambda self, name: name)

    def save_between(overloads, save=one._save_index):
        monkeypatch.setattr(one, "_save_index", save)
        late = threading.Thread(target=other.save, args=("float", b"f"))
        late.start()
        late.join(0.2)  # it waits, or it has taken the same name
        save(overloads)
        waiting.append(late)

    waiting: list[threading.Thread] = []
    monkeypatch.setattr(one, "_save_index", save_between)
    one.save("int", b"i")
    waiting[0].join()
    assert None not in (names := {one.load("int"), one.load("float")})
    assert len(names) == 2


AT_ONCE = """
import sys, time
from sfg_dist.job.kernel_cache import cached_njit
import kernels
kernel = cached_njit()(kernels.add_one)
print("ready", flush=True)
sys.stdin.readline()
kernel(1)
print(sum(kernel.stats.cache_misses.values()))
"""


@pytest.mark.long
@pytest.mark.slow
def test_processes_that_need_a_kernel_at_once_compile_it_once(tmp_path):
    lines = "\n".join(f"    value = value * 3 + {k}" for k in range(200))  # a second or so to compile
    (tmp_path / "kernels.py").write_text(f"def add_one(value):\n{lines}\n    return value\n")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": f"{PACKAGE_ROOT}:{tmp_path}"}
    command, pipe = [sys.executable, "-c", AT_ONCE], subprocess.PIPE
    both = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    assert sorted(int(process.communicate()[0]) for process in both) == [0, 1]


def test_a_private_folder_is_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = Path(private_folder("a"))
    assert private_folder("a") == str(folder)
    folder.chmod(0o777)
    assert private_folder("a") is None
    folder.rename(tmp_path / "b")
    (tmp_path / "b").chmod(0o700)
    folder.symlink_to(tmp_path / "b")
    assert private_folder("a") is None


def test_fonts_go_elsewhere_without_a_home(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "/proc/none")
    environment = {}
    spare_home(environment)
    assert environment["MPLCONFIGDIR"].startswith(str(tmp_path))
    assert environment["MPLBACKEND"] == "agg"
    monkeypatch.setenv("HOME", str(tmp_path))
    environment = {"MPLBACKEND": "misspelt"}
    spare_home(environment)
    assert environment == {"MPLBACKEND": "agg"}


# The home folder.


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_tilde_is_the_home_in_every_place(home, tmp_path):
    np.save(home / "table.npy", np.zeros((3, 1)))
    job = resolve_job(
        {"data": {"source": "~/table.npy"}, "labels": {"latents": "~/l.npy"}, "output": {"dir": "~/runs"}}
    )
    assert (job.data.source, job.labels.latents) == (str(home / "table.npy"), str(home / "l.npy"))
    assert job.output.dir == str(home / "runs")
    (home / "job.toml").write_text('[data]\nsource = "~/table.npy"\n[executor]\nkind = "inline"\n')
    for words in (
        ["plan", "~/job.toml"], ["status", "~/absent"], ["verify", "~/absent"], ["sample", "~/absent"],
        ["export", "~/absent"], ["run", "~/absent.toml"], ["scale", "~/job.toml", "--compare-with", "~/absent"],
    ):  # fmt: skip
        done = sfg(tmp_path, *words, check=None)
        assert done.returncode in (1, 2)
        assert str(home) in done.stderr, done.stderr
    for call in (sfg_dist.open_pairs, sfg_dist.Generator.load):
        with pytest.raises(StoreError, match=str(home / "absent")):
            call("~/absent")
    with pytest.raises(ConfigError, match=str(home / "absent")):
        sfg_dist.run("~/absent.toml")
    assert not list(tmp_path.glob("~*"))


def test_samples_and_models_go_to_the_home(home, tmp_path):
    from sfg_dist.data import Transform
    from sfg_dist.model import MLP

    transform = Transform.fit(np.random.default_rng(0).standard_normal((100, 2)), ("a", "b"))
    sfg_dist.Generator(MLP(2, width=8, depth=1).eval(), transform).save("~/model")
    sfg(tmp_path, "sample", "~/model", "-n", "3", "--out", "~/x.csv")
    assert (home / "x.csv").exists()


def test_homes_that_are_none(monkeypatch):
    with pytest.raises(ConfigError, match="there is no user nobody_of_that_name"):
        expanded("~nobody_of_that_name/x")
    monkeypatch.setattr(paths.os.path, "expanduser", lambda place: place)
    with pytest.raises(ConfigError, match="HOME is not set"):
        expanded("~/x")
    assert expanded("./~/x") == "./~/x"


@pytest.mark.parametrize("place", ["a\0b", "a\nb", "\x1b[31m", "\udcff", "x" * 256, "a/" * 3000])
def test_names_that_no_terminal_shows_or_no_file_has(place):
    with pytest.raises(ConfigError) as caught:
        expanded(place)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_no_submissions_without_a_home(home, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/proc/none")
    assert sfg(tmp_path, "jobs").stdout == "nothing was submitted from this account\n"


@pytest.mark.parametrize(("made", "wanted"), [("f", "f/x"), ("out/pairs.zarr", "out")])
def test_a_file_where_a_folder_must_be_is_named_before_any_work(tmp_path, make_job, made, wanted):
    (tmp_path / made).parent.mkdir(exist_ok=True)
    (tmp_path / made).write_text("")
    with pytest.raises(ConfigError, match=rf"output\.dir = .*{wanted}': .*{made} is a file: name a directory"):
        Pipeline(make_job(wanted))
