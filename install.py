"""What `make install` does: .venv with this package and its extras, at the versions of constraints.txt.

    python3 install.py [--torch cpu | --torch-index URL] [--installer pip | uv] [EXTRA ...]

It needs nothing but the standard library. uv installs where it is on the PATH, else pip does. Both ask the index that
they are configured with. torch goes first: it is by far the largest part, and its build is chosen then.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE / "constraints.txt"
VENV = HERE / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "install.json"  # what is installed, so that the next call has nothing to do
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # torch's own index of builds for the CPU


class Pip:
    """pip, in the environment itself."""

    name = "pip"

    def make_environment(self) -> None:
        """An empty .venv."""
        if subprocess.run([sys.executable, "-m", "venv", str(VENV)]).returncode:
            sys.exit("Python's module venv failed: install it (Debian: apt install python3-venv), or uv")
        self.install("pip>=25")  # older ones download all of torch to tell which build it is

    def install(self, *words: str) -> None:
        """`pip install`, which prints errors only."""
        command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-qq", *words]
        subprocess.run(command, check=True, cwd=HERE)

    def resolve(self, *words: str) -> list[tuple[str, str, str]]:
        """(name, version, URL of the file) of each package that `install` would take into an empty environment."""
        report = VENV / "report.json"
        self.install("--dry-run", "--ignore-installed", "--report", str(report), *words)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
        report.unlink()
        return [(i["metadata"]["name"], i["metadata"]["version"], i["download_info"]["url"]) for i in items]


class Uv:
    """uv, wherever it lies on the PATH."""

    name = "uv"
    options = ("--quiet", "--python", str(PYTHON), "--index-strategy", "unsafe-best-match")  # all indexes, as pip does

    def make_environment(self) -> None:
        """An empty .venv, with a pip for whoever wants one."""
        subprocess.run(["uv", "venv", "--quiet", "--seed", "--python", sys.executable, str(VENV)], check=True)

    def install(self, *words: str) -> None:
        """`uv pip install`, which prints errors only."""
        subprocess.run(["uv", "pip", "install", *self.options, *words], check=True, cwd=HERE)

    def resolve(self, requirement: str, *words: str) -> list[tuple[str, str, str]]:
        """(name, version, URL of the file) of each package that `install` would take into an empty environment."""
        import tomllib

        command = ["uv", "pip", "compile", *self.options, *words, "--format", "pylock.toml", "-"]
        done = subprocess.run(command, check=True, cwd=HERE, input=requirement, text=True, stdout=subprocess.PIPE)
        packages = tomllib.loads(done.stdout)["packages"]
        return [(p["name"], p["version"], p["wheels"][0]["url"]) for p in packages if p.get("wheels")]


def num_bytes(url: str) -> int:
    """Size of the file at a URL, or 0 where it cannot be told."""
    if url.startswith("file:"):
        return os.path.getsize(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10) as answer:
            return int(answer.headers.get("Content-Length") or 0)
    except OSError:
        return 0


def described(packages: list[tuple[str, str, str]]) -> str:
    """One line: which build of torch these packages are, and how much there is to download."""
    versions = {name.lower(): version for name, version, _ in packages}
    version = versions["torch"]
    local = version.partition("+")[2]
    runtime = versions.get("nvidia-cuda-runtime", "") or versions.get("cuda-toolkit", "")
    if runtime:
        build = "for CUDA " + ".".join(runtime.split(".")[:2])
    elif local and local != "cpu":
        build = f"for {local}"
    else:
        build = "for the CPU" + (" and Apple's GPU" if sys.platform == "darwin" else "")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        size = sum(pool.map(num_bytes, [url for _, _, url in packages]))
    return f"torch {version}, the build {build}: {size / 1e9:.1f} GB with what it needs"


def has_nvidia_driver() -> bool:
    """Whether this machine has a driver for NVIDIA GPUs."""
    return os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None


def without_secrets(url: str) -> str:
    """A URL without the user and password that it may hold."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def reached(url: str) -> bool:
    """Whether an index answers; if not, says so and what will be done instead."""
    if not url.startswith("http"):
        return True
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/torch/", timeout=15):
            return True
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        print(f"{without_secrets(url)} cannot be reached ({reason}): torch comes from the configured index.")
        print("TORCH_INDEX=URL names another index with builds of torch.", flush=True)
        return False


def install_torch(installer: Pip | Uv, index: str, force: bool) -> None:
    """torch, after a line that says which build of it and how large."""
    words = ["torch", "--constraint", str(CONSTRAINTS), *(["--extra-index-url", index] if index else [])]
    packages = installer.resolve(*words)
    print(described(packages), flush=True)
    if any(name.startswith("nvidia-") for name, _, _ in packages) and not has_nvidia_driver():
        print("This machine shows no NVIDIA driver: `make install TORCH=cpu` takes the much smaller build for the CPU.")
    sys.stdout.flush()
    if force:  # another build of the same version is not newer
        installer.install(*words, "--force-reinstall", "--no-deps")
    installer.install(*words)


def main() -> None:
    """Install what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description="Make .venv with this package.")
    parser.add_argument("extras", nargs="*", help="extras of pyproject.toml")
    parser.add_argument(
        "--torch", default="", choices=["", "cpu"], help="cpu: the build for the CPU, from torch's index"
    )
    parser.add_argument("--torch-index", default="", help="an index with other builds of torch")
    parser.add_argument("--installer", default="", choices=["", "pip", "uv"], help="default: uv if there is one")
    given = parser.parse_args()

    pins = CONSTRAINTS.read_text(encoding="utf-8")
    digest = hashlib.sha256((HERE / "pyproject.toml").read_bytes() + pins.encode()).hexdigest()
    there = json.loads(STAMP.read_text(encoding="utf-8")) if PYTHON.exists() and STAMP.exists() else {}
    extras = sorted({*given.extras, *there.get("extras", [])})
    index = given.torch_index or (TORCH_INDEX if given.torch else there.get("index", ""))
    torch_pin = next(line for line in pins.splitlines() if line.startswith("torch=="))
    wanted = {"digest": digest, "extras": extras, "index": without_secrets(index), "torch": torch_pin}
    if wanted == there:
        return
    if index and not reached(index):
        index = wanted["index"] = there.get("index", "")
        if wanted == there:
            return
    installer = Uv() if (given.installer or ("uv" if shutil.which("uv") else "pip")) == "uv" else Pip()
    try:
        began = PYTHON.exists()
        if not began:
            installer.make_environment()
        if (torch_pin, wanted["index"]) != (there.get("torch"), there.get("index")):
            install_torch(installer, index, force=began and wanted["index"] != there.get("index", ""))
        print("sfg_dist and its other packages", flush=True)
        installer.install("--constraint", str(CONSTRAINTS), "--editable", f".[{','.join(extras)}]")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{installer.name} ended with exit status {error.returncode}: its own words are above")
    STAMP.write_text(json.dumps(wanted), encoding="utf-8")


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036  this file is what an older Python runs into
        version = ".".join(str(number) for number in sys.version_info[:2])
        sys.exit("sfg_dist needs Python 3.11 or newer, and this is " + version + ": make PYTHON=python3.12 ...")
    main()
