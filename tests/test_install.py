"""The installation: versions that resolve on machines unlike this one, and the wheel by itself."""

import http.server
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import threading
import tomllib
import urllib.request
from pathlib import Path

import pytest
from patience import patience

ROOT = Path(__file__).parents[1]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]  # the classifiers of pyproject.toml
PLATFORMS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin"]
SOURCE_ONLY = ["pykeops", "keopscore"]  # the extra `bench`: these have no wheels, and are plain Python


@pytest.fixture(scope="module")
def installer():
    spec = importlib.util.spec_from_file_location("install", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


UNPINNED = {"ctgan"}
"""Extras that would hold back what the others take."""


def pinned_extras():
    """The extras that constraints.txt is made of, as the Makefile names them."""
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("PINNED_EXTRAS")]
    return line.partition("=")[2].split()


def test_constraints_are_of_all_extras_but_those_that_hold_back():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(pinned_extras()) == sorted(extras.keys() - UNPINNED)


@pytest.fixture(scope="module")
def uv(tmp_path_factory):
    """A function that runs `uv pip compile` in a folder with the project's files, without settings."""
    program = Path(sys.executable).with_name("uv")
    if not program.exists():
        pytest.skip("uv is not installed")
    try:
        urllib.request.urlopen("https://pypi.org/simple/uv/", timeout=10).close()
    except OSError as error:
        pytest.skip(f"the public index cannot be reached: {error}")
    folder = tmp_path_factory.mktemp("resolution")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    settings = ("PIP_", "UV_", "VIRTUAL_ENV", "CONDA_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    environment |= {"MACOSX_DEPLOYMENT_TARGET": "14.0"}

    def compile_(*words: str) -> subprocess.CompletedProcess:
        extras = [word for extra in pinned_extras() for word in ("--extra", extra)]
        command = [str(program), "pip", "compile", "pyproject.toml", "--quiet", *extras, "--no-annotate"]
        command += ["--no-python-downloads", *words]  # this Python will do, whichever is resolved for
        return subprocess.run(
            command, cwd=folder, env=environment, text=True, capture_output=True, timeout=patience(120)
        )

    compile_.folder = folder
    return compile_


@pytest.mark.packaging
@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_resolve_to_wheels(uv, python, platform):
    """Every extra, from the public index alone: nothing is downloaded but the packages' metadata."""
    words = ["--constraints", "constraints.txt", "--python-version", python, "--python-platform", platform]
    wheels = ["--only-binary", ":all:"] + [word for name in SOURCE_ONLY for word in ("--no-binary", name)]
    done = uv(*words, *wheels)
    assert done.returncode == 0, done.stderr
    pinned = {line.split(" ")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    taken = {line for line in done.stdout.splitlines() if not line.startswith("#")}
    assert len(taken) > 150
    assert taken <= pinned, "a package without a pin"


@pytest.mark.packaging
@pytest.mark.slow
def test_constraints_are_what_the_tool_makes(uv):
    """`make constraints` would leave the file as it is: no line was written by hand, no requirement is missing."""
    before = (uv.folder / "constraints.txt").read_text()
    words = ["--universal", "--fork-strategy", "fewest", "--python-version", "3.11", "--output-file", "constraints.txt"]
    done = uv(*words, "--custom-compile-command", "make constraints")
    assert done.returncode == 0, done.stderr
    assert (uv.folder / "constraints.txt").read_text() == before


CUDA = [("torch", "2.13.0", "a"), ("nvidia-cuda-runtime", "13.0.96", "b"), ("Jinja2", "3.1.6", "c")]


@pytest.mark.parametrize(
    ("packages", "words"),
    [
        (CUDA, "torch 2.13.0, the build for CUDA 13.0: 3.0 GB"),
        ([("torch", "2.13.0+cpu", "a")], "torch 2.13.0+cpu, the build for the CPU: 1.0 GB"),
        ([("torch", "2.13.0+rocm7.0", "a")], "torch 2.13.0+rocm7.0, the build for rocm7.0: 1.0 GB"),
    ],
)
def test_the_build_and_its_size_are_said(installer, monkeypatch, packages, words):
    monkeypatch.setattr(installer, "num_bytes", lambda url: 10**9)
    assert installer.described(packages).startswith(words)


@pytest.fixture
def served(tmp_path):
    """The address of a folder with one file of 3 bytes."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "torch.whl").write_bytes(b"abc")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_sizes_are_asked_for(installer, served, tmp_path):
    assert installer.num_bytes(f"{served}/torch/torch.whl") == 3
    assert installer.num_bytes(f"{served}/torch/none.whl") is None
    assert installer.num_bytes("https://me:secret@127.0.0.1/none.whl") is None
    assert installer.num_bytes((tmp_path / "torch" / "torch.whl").as_uri()) == 3


@pytest.mark.slow
def test_uv_takes_over_pip_s_settings(installer, tmp_path, monkeypatch):
    for name in [*installer.UV_SETTINGS, "SSL_CERT_FILE", *(name for name in os.environ if name.startswith("PIP_"))]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pip.conf").write_text("[global]\nextra-index-url = https://a https://b\ncert = /cert.pem\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    words = installer.Uv().options
    given = list(itertools.pairwise(words))
    for pair in (("--extra-index-url", "https://a"), ("--extra-index-url", "https://b"), ("--find-links", "/wheels")):
        assert pair in given
    assert installer.Uv().environment["SSL_CERT_FILE"] == "/cert.pem"
    monkeypatch.setenv("UV_FIND_LINKS", "/others")
    assert "--find-links" not in installer.Uv().options


@pytest.fixture
def checkout(installer, tmp_path, monkeypatch):
    """A function that calls `install.py WORDS` on a folder of its own; gives what it had installed, call by call."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name, path in (
        ("HERE", "."), ("CONSTRAINTS", "constraints.txt"), ("VENV", ".venv"), ("PYTHON", ".venv/python"),
        ("STAMP", ".venv/install.json"),
    ):  # fmt: skip
        monkeypatch.setattr(installer, name, tmp_path / path)
    monkeypatch.setattr(installer, "num_bytes", lambda url: 1)
    calls = []

    class Fake:
        name = "fake"

        def make_environment(self):
            installer.PYTHON.parent.mkdir()
            installer.PYTHON.touch()
            if call.is_interrupted:
                raise KeyboardInterrupt

        def install(self, *words):
            calls.append([word for word in words if not word.startswith("/")])
            if call.is_cut_short and len(calls) == 2:
                raise subprocess.CalledProcessError(1, "pip")

        def resolve(self, *words):
            if any("away" in word for word in words):
                raise subprocess.CalledProcessError(1, "pip")
            return [("torch", "2.13.0+cpu", "")] if "--extra-index-url" in words else CUDA

    monkeypatch.setattr(installer, "Pip", Fake)
    monkeypatch.setattr(installer, "Uv", Fake)
    monkeypatch.setattr(installer.shutil, "which", lambda name: None)

    def call(*words):
        calls.clear()
        monkeypatch.setattr(sys, "argv", ["install.py", *words])
        installer.main()
        return list(calls)

    call.is_cut_short = call.is_interrupted = False
    return call


@pytest.mark.slow
def test_nothing_is_done_twice(checkout, capsys):
    torch, package = checkout("test", "lint")
    assert torch == ["torch", "--constraint"]
    assert package == ["--constraint", "--editable", ".[lint,test]"]
    assert "the build for CUDA 13.0" in capsys.readouterr().out
    assert checkout("test") == []
    assert capsys.readouterr().out == ""
    assert checkout("cluster") == [["--constraint", "--editable", ".[cluster,lint,test]"]]  # torch stays as it is


def test_another_build_of_the_same_version_is_forced(checkout):
    checkout("test")
    index = ["--extra-index-url", "http://me:secret@host/cpu"]
    forced, torch, _ = checkout("--torch-index", index[1])
    assert forced == ["torch", "--constraint", *index, "--force-reinstall", "--no-deps"]
    assert torch == ["torch", "--constraint", *index]


def test_an_index_out_of_reach_leaves_what_is_there(checkout, installer, capsys):
    checkout("test")
    stamp = installer.STAMP.read_text()
    capsys.readouterr()
    assert checkout("--torch-index", "http://me:secret@away/cpu") == []
    said = capsys.readouterr().out
    assert "http://away/cpu cannot be reached or has no build of this torch" in said
    assert "TORCH_INDEX=URL" in said
    assert installer.STAMP.read_text() == stamp
    assert "secret" not in said + stamp


def test_a_build_stays_until_another_is_named(checkout):
    checkout("--torch", "cpu", "test")
    assert checkout("test") == []
    forced, torch, _ = checkout("--torch", "default")
    assert forced[-2:] == ["--force-reinstall", "--no-deps"]
    assert torch == ["torch", "--constraint"]


def test_what_was_cut_short_is_done_again(checkout, installer):
    checkout("test")
    checkout.is_cut_short = True
    with pytest.raises(SystemExit, match="ended with exit status 1"):
        checkout("--torch", "cpu")
    checkout.is_cut_short = False
    assert checkout()[0][0] == "torch"
    assert checkout() == []


def test_where_uv_fails_pip_installs(checkout, installer, monkeypatch, capsys):
    monkeypatch.setattr(installer.shutil, "which", lambda name: name)
    checkout.is_cut_short = True
    assert len(checkout("test")) == 4  # twice torch and the package, which uv did not get done
    assert "pip is tried" in capsys.readouterr().out
    assert checkout("test") == []
    checkout.is_cut_short = True
    with pytest.raises(SystemExit, match="uv ended with exit status 1"):
        checkout("--torch", "cpu", "--installer", "uv")


def test_half_an_environment_goes(checkout, installer):
    checkout.is_interrupted = True
    with pytest.raises(SystemExit):
        checkout()
    assert not installer.VENV.exists()
    checkout.is_interrupted = False
    assert checkout()[-1] == ["--constraint", "--editable", "."]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clsuter"], "there is no extra clsuter: there are h5, "),
        (["--torch", "cpu", "--torch-index", "http://host"], "take one"),
        (["--torch", "rocm"], "invalid choice"),
    ],
)
def test_wrong_words(checkout, capsys, words, message):
    with pytest.raises(SystemExit):
        checkout(*words)
    assert message in capsys.readouterr().err


def test_no_extras_is_the_package_alone(checkout):
    assert checkout()[-1] == ["--constraint", "--editable", "."]


@pytest.mark.packaging
@pytest.mark.slow
def test_the_wheel_holds_all_that_a_job_needs(tmp_path):
    """The wheel alone, outside the checkout: examples, profiles, labels, a fit, samples and the page."""
    sources = tmp_path / "sources"
    for name in ("sfg_dist", "jobs", "cluster"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    built = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(sources)]
    subprocess.run(built, check=True, capture_output=True, timeout=patience(120))  # the wheel from the sdist
    shutil.rmtree(sources)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    job = tmp_path / "job.toml"
    job.write_text(
        '[data]\nsource = "moons"\nmax_rows = 600\n'
        "[labels]\nnum_pairs = 1000\nnum_evaluations = 8\n"
        "[train]\nwidth = 16\ndepth = 1\nnum_epochs = 2\n"
        "[evaluate]\nnum_samples = 200\njudge = false\n"
    )
    program = "import sfg_dist, sfg_dist.cli.main as c; assert sfg_dist.__file__.startswith({!r}); c.main()"

    def sfg(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program.format(str(tmp_path)), *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
            text=True,
            capture_output=True,
            timeout=patience(300),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for example, place in (("quickstart", "jobs/quickstart.toml"), ("study", "jobs/study"), ("cluster", "cluster")):
        sfg("init", "--example", example)
        copied, there = tmp_path / Path(place).name, ROOT / place
        pairs = [(copied / path.name, path) for path in there.iterdir() if path.is_file()] if there.is_dir() else []
        for mine, theirs in pairs or [(copied, there)]:
            assert mine.read_bytes() == theirs.read_bytes()
    shutil.rmtree(tmp_path / "cluster")
    profile = tmp_path / "site" / "sfg_dist" / "shipped" / "cluster" / "slurm.toml"
    profile.write_text(profile.read_text().replace('"1:00:00"', '"7:00:00"'))
    assert "7:00:00" in sfg("submit", "job.toml", "--to", "slurm", "--dry-run")
    sfg("run", "job.toml", "--executor", "inline")
    assert (tmp_path / "runs" / "job" / "report.html").stat().st_size > 10_000


def test_the_citation_has_the_project_s_own_words():
    import tomllib

    import yaml

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"], citation["license"]) == (project["name"], project["license"])
    assert "version" not in citation  # it stands in sfg_dist/job/version.py alone
    readme = (ROOT / "README.md").read_text()
    assert all(reference["url"] in readme for reference in citation["references"])
    assert citation["abstract"] in readme


@pytest.mark.packaging
@pytest.mark.slow
def test_figures_of_the_report_are_those_of_sdmetrics(tmp_path, uv):
    """With sdmetrics in a folder of its own: it holds pandas back, so it is not among what tests need."""
    words = [
        "--target",
        str(tmp_path),
        "--no-deps",
        "sdmetrics==0.32.0",
        "copulas",
        "pandas<3",
        "plotly",
        "narwhals",
        "pytz",
        "tqdm",
    ]
    program = Path(sys.executable).with_name("uv")
    subprocess.run([program, "pip", "install", "--python", sys.executable, *words], check=True, capture_output=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-k", "sdmetrics", "tests/evaluate/test_figures.py"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": f"--basetemp={tmp_path / 'tests'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=patience(120))
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
