"""Secrets reach no log, console or file, and what stands in files of others is shown, never obeyed."""

import io
import json
import os
import urllib.parse
import warnings

import numpy as np
import pyarrow as pa
import pytest
from commands import sfg
from pyarrow import parquet
from rich.console import Console
from told import failed, snapshot

from sfg_dist.cli import main as cli
from sfg_dist.cli.command import say
from sfg_dist.cli.display import Display
from sfg_dist.distributed.failure import Failure
from sfg_dist.distributed.labels.monitor import Monitor
from sfg_dist.job.config import load_job, resolve_job
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.object_stores import plain_reason, without_credentials
from sfg_dist.job.paths import expanded, place_of
from sfg_dist.job.words import as_line, printable, shown
from sfg_dist.launch import load_profile
from sfg_dist.pipeline.output import OutputDirectory
from sfg_dist.store import Location

SECRET = 'p"w/ü\\k+ e&y%\n-1'
NAMES = ("AWS_SECRET_ACCESS_KEY", "DB_PASS", "MYSQL_PWD", "PASSPHRASE", "REGISTRY_AUTH", "SESSION_COOKIE", "SENTRY_DSN",
         "SMTP_PASS2", "HF_TOKEN", "AZURE_STORAGE_CONNECTION_STRING")  # fmt: skip


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("DB_PASS", SECRET)
    return SECRET


# Masked, however it is written.


@pytest.mark.parametrize("name", NAMES)
def test_names_of_secrets(monkeypatch, name):
    monkeypatch.setenv(name, "s3cret-value")
    assert without_credentials("it was s3cret-value.") == f"it was <{name}>."


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "COMPASS", "RAY_AUTH_MODE", "SSH_AUTH_SOCK", "PASSENGERS"])
def test_names_that_only_look_like_secrets(monkeypatch, name):
    monkeypatch.setenv(name, "/home/of/mine")
    assert without_credentials("in /home/of/mine") == "in /home/of/mine"


WRITTEN = {
    "as it is": lambda text: text,
    "JSON": json.dumps,
    "JSON in UTF-8": lambda text: json.dumps(text, ensure_ascii=False),
    "JSON within JSON": lambda text: json.dumps(json.dumps(text)),
    "JSON with escaped slashes": lambda text: json.dumps(text).replace("/", r"\/"),
    "Python": repr,
    "ASCII": ascii,
    "percent-encoded": lambda text: urllib.parse.quote(text, safe=""),
    "percent-encoded as a path": urllib.parse.quote,
    "in small letters": lambda text: urllib.parse.quote(text, safe="").replace("%2F", "%2f").replace("%5C", "%5c"),
    "as a form": urllib.parse.quote_plus,
    "twice": lambda text: urllib.parse.quote(urllib.parse.quote(text, safe=""), safe=""),
    "in a mapping": lambda text: {"a": [{"b": (text, 1)}], text: None},
}


@pytest.mark.parametrize("way", WRITTEN)
def test_a_secret_is_found_however_it_is_written(secret, way):
    masked = without_credentials(WRITTEN[way](f"x {secret} y"))
    told = masked if isinstance(masked, str) else json.dumps(masked)
    assert "<DB_PASS>" in told
    assert "w/" not in told.replace("\\", "")
    assert "%22w" not in told


def test_the_longer_of_two_secrets_goes_first(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh-and-more")
    assert without_credentials("abcdefgh-and-more, abcdefgh") == "<B_TOKEN>, <A_TOKEN>"


@pytest.mark.parametrize(
    "url",
    ["s3://key:hidden@bucket/x", "https://user:hid@hidden@host/x", "https://h/x?X-Amz-Signature=hidden", "s3://a/b?hidden",
     r"https:\/\/user:hidden@host\/x", "postgres://u:hidden@h:5432/db?sslmode=x&password=hidden"],
)  # fmt: skip
def test_urls_lose_what_they_hold(url):
    for masked in (without_credentials(f"GET {url} failed"), shown(url), plain_reason(ValueError(f"at {url}"))):
        assert "hid" not in masked
        assert "://" in masked.replace("\\", "")


# At every way out.


def test_events_are_masked_before_anybody_hears_of_them(secret, tmp_path):
    heard = []
    output = OutputDirectory(str(tmp_path / "run"), heard.append)
    output.emit("attempt_failed", reason=f"PUT {secret}", nested={"a": [secret]})
    output.tell("live", reason=secret)
    with output.stage("label", fresh=True, total=1, missing=1, rows=secret):
        pass
    told = json.dumps(heard) + (tmp_path / "run" / "events.jsonl").read_text()
    assert told.count("<DB_PASS>") == 7
    assert "w/" not in told.replace("\\", "")


def test_the_console_says_what_the_log_says(secret, tmp_path, capsys):
    with Display(on_stderr=False) as display:
        output = OutputDirectory(str(tmp_path / "run"), display)
        output.emit("attempt_failed", shard=1, attempt=1, reason=f"403 for {secret}", action="retry")
        output.emit("stopping", reason=f"403 for {secret}")
        output.emit("worker_lost", worker="cpu-1", reason=urllib.parse.quote(secret))
    told = capsys.readouterr().out
    assert told.count("<DB_PASS>") == 3
    assert "w/" not in told


def test_a_stores_own_log_and_snapshots_are_masked(secret, tmp_path):
    location = Location(str(tmp_path), create=True)
    with Monitor(location, "me") as monitor:
        failure = failed(reason=secret)
        monitor.event(failure)
        monitor.snapshot(snapshot(failures=((0.0, failure),)))
    told = "".join(path.read_text() for path in tmp_path.rglob("*.json*"))
    assert told.count("<DB_PASS>") == 2
    assert "w/" not in told.replace("\\", "")


def test_a_workers_failure_is_masked_where_it_is_made(secret):
    assert str(Failure.of(ValueError(f"key {secret}"))) == "ValueError: key <DB_PASS>"


def test_errors_warnings_and_tracebacks_are_masked(secret, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError(f"signed with {secret}")

    monkeypatch.setattr(cli, "job_of", fail)
    (tmp_path / "job.toml").write_text('[data]\nsource = "moons"\n')
    done = sfg(tmp_path, "run", "job.toml", "--debug", "--json", check=1)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.show_warnings_in_a_line()
        warnings.warn(f"slow: {secret}", stacklevel=1)
    told = done.stdout + done.stderr + capsys.readouterr().err
    assert told.count("<DB_PASS>") == 4
    assert 'p"w/' not in told


# URLs are refused where they would be stored.

HELD = ["s3://key:hidden@bucket/x.csv", "s3://hidden@bucket/x.csv", "s3://b/x.csv?X-Amz-Signature=hidden",
        "https://user:hidden@host/x.csv", "gs://u:hidden@b/x.csv", "az://b/x.csv?sig=hidden",
        "abfss://u:hidden@account.dfs.core.windows.net/x.csv"]  # fmt: skip


@pytest.mark.parametrize("url", HELD)
def test_urls_that_hold_secrets_are_refused(url, tmp_path):
    variable = {"s3": "AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_SERVICE_ACCOUNT", "az": "AZURE_STORAGE_ACCOUNT_KEY",
                "abfss": "AZURE_STORAGE_SAS_KEY"}.get(url.partition(":")[0], "environment variable")  # fmt: skip
    job = {"data": {"source": "moons"}}
    calls = [
        lambda: expanded(url),
        lambda: place_of("path", url),
        lambda: resolve_job({"data": {"source": url}}),
        lambda: resolve_job(job | {"output": {"dir": url}}),
        lambda: resolve_job(job | {"labels": {"latents": url}}),
        lambda: resolve_job(job | {"executor": {"address": url}}),
        lambda: load_profile(None, [f"ray.address={url}"]),
    ]
    for call in calls:
        with pytest.raises(ConfigError) as caught:
            call()
        assert "hidden" not in str(caught.value)
        assert variable in str(caught.value)


@pytest.mark.parametrize("words", [["plan", "job.toml"], ["sample", "{}"], ["status", "{}"], ["export", "{}"],
                                   ["repair", "{}"], ["verify", "{}"]])  # fmt: skip
def test_commands_refuse_them_and_write_nothing(tmp_path, words):
    (tmp_path / "job.toml").write_text(f'[data]\nsource = "{HELD[0]}"\n')
    done = sfg(tmp_path, *(word.format(HELD[2]) for word in words), "--json", check=2)
    assert "hidden" not in done.stdout + done.stderr
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
    assert os.listdir(tmp_path) == ["job.toml"]


def test_a_line_of_a_job_file_that_is_no_toml_is_shown_without_them(tmp_path):
    (tmp_path / "job.toml").write_text(f"[data]\nsource = {HELD[0]}\n")
    assert "hidden" not in sfg(tmp_path, "plan", "job.toml", check=2).stderr


@pytest.mark.parametrize(
    "place",
    ["s3://bucket/x@y.csv", "abfss://container@account.dfs.core.windows.net/x", "runs/a?b@c", "http://127.0.0.1:8265"],
)
def test_places_without_secrets_are_taken(place):
    assert expanded(place) == place


# A job does not choose the cluster that the user's token is sent to.


@pytest.mark.parametrize("address", ["stranger:6379", "auto", "ray://stranger:10001", "127.0.0.1:6379"])
@pytest.mark.parametrize("words", [["run"], ["label"], ["train"], ["plan"], ["submit", "--to", "slurm"]])
def test_a_job_file_that_names_a_cluster_is_refused(tmp_path, address, words):
    text = f'[data]\nsource = "moons"\n[executor]\naddress = "{address}"\n'
    (tmp_path / "job.toml").write_text(text)
    done = sfg(tmp_path, words[0], "job.toml", *words[1:], check=2)
    assert "is not taken from a file" in done.stderr
    assert "--set executor.address=ADDRESS" in done.stderr


def test_the_command_line_names_a_cluster(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text('[data]\nsource = "moons"\n[executor]\naddress = "stranger:6379"\n')
    assert load_job(path, ["executor.address=own:6379"]).executor.address == "own:6379"
    assert load_job(path, [" executor.address =own:6379"]).executor.address == "own:6379"
    assert load_job(path, ["executor.kind=inline"]).executor.address == "stranger:6379"  # where nobody goes to it
    with pytest.raises(ConfigError, match="not taken from a file"):
        load_job(path, ["executor.num_actors=2"])


# What stands in files is shown, never obeyed.

ODD = "\x1b[31mred\x1b]8;;http://evil\x1b\\link\x07\u202egnp.exe\u2066\r\b\x9b2J\x00\u200b[link=http://x][bold]:smile:"


def is_safe(text):
    return all(letter.isprintable() or letter == "\n" for letter in text)


def test_controls_and_marks_that_turn_the_writing_are_written_out():
    assert is_safe(printable(ODD))
    assert printable("a\nb\tc") == "a\nb\tc"
    assert as_line("a\nb\tc\u202e") == r"a\nb\tc\u202e"
    assert as_line("é 漢 \U0001f600") == "é 漢 \U0001f600"


def test_names_in_events_are_shown_as_they_are(capsys):
    display = Display(on_stderr=False)
    name = f"{ODD}\nlabel: done"
    display.tell(
        "table", read_as=name, split={"train": 1, "validation": 1, "test": 1}, num_rows_dropped=0, constant=[name],
        ties={name: {"step": 1.0}}, atoms={},
    )  # fmt: skip
    display.tell("worker_lost", worker=name, reason=name)
    display.tell("draining", node=name)
    display.tell("resumed_from", checkpoint=name)
    display.tell("attempt_failed", shard=name, attempt=1, worker=name, reason=name)
    told = capsys.readouterr().out
    assert is_safe(told)
    assert told.count("[link=http://x][bold]:smile:") >= 8
    assert not any(line.startswith("label: done") for line in told.splitlines())


def test_a_bar_shows_markup_as_it_is(monkeypatch):
    display = Display(on_stderr=False)
    display._console = Console(force_terminal=True, width=300, file=io.StringIO())
    display._stage = {"time": 0.0}
    display._open_bar("[red]x[/red]\x1b[2J", 10, 0)
    display._advance(1, "[red]y[/red]\x1b[2J", {"time": 1.0})
    display._progress.refresh()
    assert display._progress.tasks[0].description == r"[red]y[/red]\x1b[2J"
    (column, *_) = display._progress.columns
    assert str(column.render(display._progress.tasks[0])) == r"[red]y[/red]\x1b[2J"
    display._close_bar()


def test_results_in_words_are_safe(capsys):
    say(False, {}, f"{ODD}\nmodel: x")
    say(True, {"name": ODD}, "")
    assert is_safe(capsys.readouterr().out)


def test_snapshots_of_a_store_are_shown_as_they_are(copy_labels):
    """Somebody else's store: a driver, its workers and its failures with names that a terminal would obey."""
    pairs = copy_labels(8)
    for path in (pairs.location.root / "drivers").glob("*.json"):
        snapshot = json.loads(path.read_text())
        odd = {"host": ODD, "device": ODD, "worker": f"{ODD}\nx", "state": ODD, "kind": ODD}
        snapshot["workers"] = [worker | odd for worker in snapshot["workers"]] or snapshot["workers"]
        snapshot["failures"] = [{"shard": ODD, "attempt": ODD, "worker": ODD, "reason": ODD, "action": "retry"}]
        path.write_text(json.dumps(snapshot))
    for path in (pairs.location.root / "commits").glob("*.json"):
        record = json.loads(path.read_text())
        record["device"] = record["host"] = ODD
        path.write_text(json.dumps(record))
    done = sfg(pairs.location.root.parent, "status", ".", check=None)
    assert is_safe(done.stdout + done.stderr)


def test_findings_about_foreign_names_are_shown_as_they_are(copy_labels):
    pairs = copy_labels(8)
    (pairs.location.root / "commits" / "\u202ex.json").write_text("{}")
    (pairs.location.root / "labels" / "[red]\u202e").write_text("x")
    done = sfg(pairs.location.root.parent, "verify", ".", check=1)
    assert is_safe(done.stdout + done.stderr)
    assert "[red]" in done.stdout


def test_names_in_a_judgement_of_files_are_one_line_each(tmp_path, no_pictures):
    name = f"{ODD}\nFidelity: passed. All is well."
    rng = np.random.default_rng(0)
    for file in ("a", "b"):
        columns = {name: rng.standard_normal(200), "b\nc": rng.choice(["x\ny", "<b>"], 200)}
        parquet.write_table(pa.table(columns), tmp_path / f"{file}.parquet")
    done = sfg(tmp_path, "evaluate", "--samples", "a.parquet", "--data", "b.parquet")
    assert is_safe(done.stdout + done.stderr)
    assert "All is well." in done.stdout
    assert not any(line.startswith(("Fidelity: passed. All", "c", "y")) for line in done.stdout.splitlines())
