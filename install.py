"""What `make install` does: .venv with this package and its extras, at the versions of constraints.txt.

    python3 install.py [--torch cpu | --torch default | --torch-index URL] [--installer pip | uv] [EXTRA ...]

It needs nothing but the standard library. uv installs where it is on the PATH, else pip does, also where uv was not
asked for by name and fails. Both ask the index that they are configured with; uv takes over what pip is told of
indexes and where uv is told nothing. torch goes first: it is by far the largest part, and its build is chosen then.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE / "constraints.txt"
VENV = HERE / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "install.json"  # what is installed, so that the next call has nothing to do
# pip's settings that uv does not read, each with uv's name for it.
PIP_SETTINGS = {
    "index-url": "--index-url", "extra-index-url": "--extra-index-url", "find-links": "--find-links",
    "constraint": "--constraint", "trusted-host": "--allow-insecure-host",
}  # fmt: skip
UV_SETTINGS = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_CONFIG_FILE")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # torch's own index of builds for the CPU


class Pip:
    """pip, in the environment itself."""

    name = "pip"

    def make_environment(self) -> None:
        """An empty .venv."""
        if subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)]).returncode:
            sys.exit("Python's module venv failed: install it (Debian: apt install python3-venv), or uv")

    def install(self, *words: str) -> None:
        """`pip install`, which prints errors only.

        Modules are compiled when they are first imported, as after uv: all of them at once takes three times as long
        as installing them.
        With -qq, too, pip prints a warning for each try at an index that is out of reach, several a package. They
        matter where the installation failed: there each is said once.
        """
        command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-qq", "--no-compile", *words]
        # A setting of the user's that holds outside of environments alone.
        environment = {**os.environ, "PIP_USER": "0"}
        done = subprocess.run(command, cwd=HERE, env=environment, stderr=subprocess.PIPE, text=True)
        for line in dict.fromkeys(done.stderr.splitlines()):
            if done.returncode or not line.startswith(("WARNING: ", "DEPRECATION: ")):
                print(line, file=sys.stderr)
        done.check_returncode()

    def resolve(self, *words: str) -> list[tuple[str, str, str]]:
        """(name, version, URL of the file) of each package that `install` would take into an empty environment."""
        self.install("pip>=25")  # older ones download all of torch to tell which build it is
        report = VENV / "report.json"
        # An extra index out of reach is asked for each package: with second tries that takes minutes.
        tries = ["--retries", "0"] if "--extra-index-url" in words else []
        self.install("--dry-run", "--ignore-installed", *tries, "--report", str(report), *words)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
        report.unlink()
        return [(i["metadata"]["name"], i["metadata"]["version"], i["download_info"]["url"]) for i in items]


def pip_settings() -> dict[str, list[str]]:
    """What pip is configured with on this machine, from its files and the environment; nothing where it is missing."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    found: dict[tuple[str, str], list[str]] = {}
    for line in said.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        found[section, name] = ast.literal_eval(value).split()
    # The last of them is the one that pip takes.
    return {name: found[section, name] for part in ("global", "install", ":env:") for section, name in found
            if section == part}  # fmt: skip


class Uv:
    """uv, wherever it lies on the PATH, with pip's settings where it has none of its own."""

    name = "uv"

    def __init__(self) -> None:
        self.options = ["--quiet", "--python", str(PYTHON)]
        self.options += ["--index-strategy", "unsafe-best-match"]  # all indexes, as pip does
        self.environment = dict(os.environ)
        if any(name in os.environ for name in UV_SETTINGS):
            return
        settings = pip_settings()
        for name, option in PIP_SETTINGS.items():
            self.options += [word for value in settings.get(name, []) for word in (option, value)]
        if "cert" in settings:
            self.environment.setdefault("SSL_CERT_FILE", " ".join(settings["cert"]))

    def make_environment(self) -> None:
        """An empty .venv, with a pip for whoever wants one."""
        subprocess.run(
            ["uv", "venv", "--quiet", "--seed", "--clear", "--python", sys.executable, str(VENV)], check=True
        )

    def install(self, *words: str) -> None:
        """`uv pip install`, which prints errors only."""
        subprocess.run(["uv", "pip", "install", *self.options, *words], check=True, cwd=HERE, env=self.environment)

    def resolve(self, requirement: str, *words: str) -> list[tuple[str, str, str]]:
        """(name, version, URL of the file) of each package that `install` would take into an empty environment."""
        import tomllib

        command = ["uv", "pip", "compile", *self.options, *words, "--format", "pylock.toml", "-"]
        done = subprocess.run(
            command, check=True, cwd=HERE, env=self.environment, input=requirement, text=True, stdout=subprocess.PIPE
        )
        packages = tomllib.loads(done.stdout)["packages"]
        return [(p["name"], p["version"], p["wheels"][0]["url"]) for p in packages if p.get("wheels")]


def num_bytes(url: str) -> int | None:
    """Size of the file at a URL; None where it cannot be told."""
    try:
        if url.startswith("file:"):
            return os.path.getsize(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, ValueError, TypeError, http.client.HTTPException):
        return None


def described(packages: list[tuple[str, str, str]]) -> str:
    """One line: which build of torch these packages are, and how much there is to download."""
    versions = {name.lower(): version for name, version, _ in packages}
    version = versions["torch"]
    local = version.partition("+")[2]
    runtime = next((v for name, v in versions.items() if name.startswith("nvidia-cuda-runtime")), "")
    if runtime:
        build = "for CUDA " + ".".join(runtime.split(".")[:2])
    elif local and local != "cpu":
        build = f"for {local}"
    else:
        build = "for the CPU" + (" and Apple's GPU" if sys.platform == "darwin" else "")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(num_bytes, [url for _, _, url in packages]))
    told = sum(size for size in sizes if size is not None) / 1e9
    size = f"{'at least ' if None in sizes else ''}{told:.1f} GB with what it needs" if any(sizes) else "size not told"
    return f"torch {version}, the build {build}: {size}"


def has_nvidia_driver() -> bool:
    """Whether this machine has a driver for NVIDIA GPUs."""
    return os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None


def without_secrets(url: str) -> str:
    """A URL without the user and password that it may hold."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def choose_build(installer: Pip | Uv, index: str) -> tuple[list[tuple[str, str, str]], str]:
    """The build of torch that an index has, and the index; that of the configured index, and "", if it has none."""
    words = ["torch", "--constraint", str(CONSTRAINTS)]
    if index:
        try:
            packages = installer.resolve(*words, "--extra-index-url", index)
        except subprocess.CalledProcessError:
            packages = []
        # A build has a word of its own in its version, except on macOS, which has but one.
        version = next((version for name, version, _ in packages if name == "torch"), "")
        if "+" in version or (packages and sys.platform == "darwin"):
            return packages, index
        print(f"{without_secrets(index)} cannot be reached or has no build of this torch: the default one is taken.")
        print("TORCH_INDEX=URL names another index with builds of torch.", flush=True)
    return installer.resolve(*words), ""


def write_stamp(content: dict[str, object]) -> None:
    """Note what is installed, whole or not at all."""
    part = STAMP.with_suffix(".part")
    part.write_text(json.dumps(content), encoding="utf-8")
    os.replace(part, STAMP)


def install(installer: Pip | Uv, there: dict[str, Any], wanted: dict[str, Any], index: str) -> None:
    """Bring .venv from what is there to what is wanted; its stamp says neither meanwhile."""
    if not PYTHON.exists():
        try:
            installer.make_environment()
        except BaseException:
            shutil.rmtree(VENV, ignore_errors=True)  # a half of it is there, without pip
            raise
    if wanted["torch"] != there.get("torch") or wanted["index"] != there.get("index"):
        packages, index = choose_build(installer, index)
        wanted["index"] = without_secrets(index)
        if wanted["torch"] != there.get("torch") or wanted["index"] != there.get("index"):
            print(described(packages), flush=True)
            if any(name.startswith("nvidia-") for name, _, _ in packages) and not has_nvidia_driver():
                print("This machine shows no NVIDIA driver: `make install TORCH=cpu` takes the much smaller CPU build.")
            sys.stdout.flush()
            write_stamp({**wanted, "torch": None, "digest": None})
            words = ["torch", "--constraint", str(CONSTRAINTS), *(["--extra-index-url", index] if index else [])]
            if there:  # another build of the same version is not newer
                installer.install(*words, "--force-reinstall", "--no-deps")
            installer.install(*words)
    if wanted != there:
        print("Installing sfg_dist and its other packages", flush=True)
        write_stamp({**wanted, "digest": None})
        extras = f"[{','.join(wanted['extras'])}]" if wanted["extras"] else ""
        installer.install("--constraint", str(CONSTRAINTS), "--editable", f".{extras}")
    write_stamp(wanted)


def main() -> None:
    """Install what is asked for and not there yet."""
    import tomllib

    parser = argparse.ArgumentParser(description="Make .venv with this package.")
    parser.add_argument("extras", nargs="*", help="extras of pyproject.toml")
    parser.add_argument(
        "--torch", default="", choices=["", "cpu", "default"], help="which build; kept until another is named"
    )
    parser.add_argument("--torch-index", default="", help="an index with other builds of torch")
    parser.add_argument("--installer", default="", choices=["", "pip", "uv"], help="default: uv if there is one")
    given = parser.parse_args()
    if given.torch and given.torch_index:
        parser.error("TORCH and TORCH_INDEX: take one")
    known = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extra in given.extras:
        if extra not in known:
            parser.error(f"there is no extra {extra}: there are {', '.join(known)}")
    name = given.installer or ("uv" if shutil.which("uv") else "pip")
    if name == "uv" and shutil.which("uv") is None:
        parser.error("uv is not on the PATH: INSTALLER=pip does without it")

    pins = CONSTRAINTS.read_text(encoding="utf-8")
    there = json.loads(STAMP.read_text(encoding="utf-8")) if PYTHON.exists() and STAMP.exists() else {}
    index = given.torch_index or {"cpu": TORCH_INDEX, "default": ""}.get(given.torch, there.get("index", ""))
    wanted = {
        "digest": hashlib.sha256((HERE / "pyproject.toml").read_bytes() + pins.encode()).hexdigest(),
        "extras": sorted({*given.extras, *there.get("extras", [])}),
        "index": without_secrets(index),
        "torch": next(line for line in pins.splitlines() if line.startswith("torch==")),
    }
    if wanted == there:
        return
    try:
        try:
            install(Uv() if name == "uv" else Pip(), there, wanted, index)
        except subprocess.CalledProcessError:
            if name == "pip" or given.installer:
                raise
            print("uv could not install this, in its own words above: pip is tried.", flush=True)
            name = "pip"
            install(Pip(), there, wanted, index)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{name} ended with exit status {error.returncode}: its own words are above; make clean begins anew")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036  this file is what an older Python runs into
        version = ".".join(str(number) for number in sys.version_info[:2])
        sys.exit("sfg_dist needs Python 3.11 or newer, and this is " + version + ": make PYTHON=python3.12 ...")
    main()
