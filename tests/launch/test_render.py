"""What is sent: every value quoted, every manifest of known fields, and refusals before anything is sent."""

import json
import os
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sfg_dist.cli import main as cli
from sfg_dist.job.config import resolve_job
from sfg_dist.job.errors import ConfigError
from sfg_dist.launch import Order, load_profile, slurm, submit
from sfg_dist.launch.slurm_task import MANY_MACHINES
from sfg_dist.launch.submission import find, known, seeded, write_files

NASTY = [
    "plain", "two words", "it's \"quoted\"", "$(touch PWNED)", "`touch PWNED`", "a;touch PWNED", "ü%j\n#SBATCH --x",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_registry(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def make_job(**tables):
    return resolve_job({"data": {"source": "moons"}, "output": {"dir": "runs/a b"}} | tables)


def render(to="slurm", jobs=None, overrides=(), **options):
    name = options.pop("name", "test")
    order = Order(jobs or [make_job()], load_profile(None, overrides), **options)
    return submit(order, to=to, name=name)[:2]


def run_script(folder, files, tmp_path, **environment):
    """The batch script with a python that says what it was given."""
    python = tmp_path / "it's a python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$OUT"; env -0 > "$OUT.env"\n')
    python.chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(files["job.sh"])
    out = tmp_path / "out"
    subprocess.run(["bash", script], env=os.environ | {"OUT": str(out)} | environment, check=True)
    pairs = [entry.partition("=")[::2] for entry in (tmp_path / "out.env").read_text().split("\0") if entry]
    return out.read_text().splitlines(), dict(pairs)


@pytest.mark.parametrize("name", NASTY)
def test_a_name_is_one_word_whatever_is_in_it(name, tmp_path):
    submission, rendered = render(name=name)
    (command,) = rendered.commands
    (word,) = [word for word in command if word.startswith("--job-name=")]
    assert word == f"--job-name={submission.name}"
    assert "\n" not in word
    shown = shlex.split(rendered.text().partition("# command\n")[2])
    assert shown == command  # what is printed can be pasted
    assert not (tmp_path / "PWNED").exists()
    assert not any("PWNED" in content for content in rendered.files.values())


@pytest.mark.parametrize("value", NASTY)
def test_values_of_the_site_reach_the_process_as_they_are(value, tmp_path):
    overrides = [f"setup.environment.SITE={json.dumps(value)}", f"setup.python={tmp_path}/it's a python"]
    profile = load_profile(None, overrides)
    submission, rendered, _ = submit(Order([make_job()], profile), to="slurm", name="x")
    arguments, environment = run_script(submission.folder, rendered.files, tmp_path)
    assert arguments == ["-I", f"{submission.folder}/slurm_task.py", submission.folder]
    assert environment["SITE"] == value
    assert not (tmp_path / "PWNED").exists()


def test_modules_commands_and_a_container():
    _, rendered = render(
        overrides=[
            'setup.modules=["python/3.11", "cuda $X"]', 'setup.commands=["source site.sh"]',
            "setup.container.image=/images/a b.sif", 'setup.container.options=["--bind", "/shared"]',
            "slurm.gpus_per_node=2", "slurm.gpu_type=a100",
        ]
    )  # fmt: skip
    lines = rendered.files["job.sh"].splitlines()
    assert lines[2:6] == ["set -e", "module load python/3.11", "module load 'cuda $X'", "source site.sh"]
    assert lines[-1].startswith("exec python3 ")
    task = json.loads(rendered.files["task.json"])
    enter = ["apptainer", "exec", "--nv", "--bind", "/shared", "/images/a b.sif", "python"]
    assert task["sfg"] == [*enter, "-P", "-m", "sfg_dist"]
    assert task["ray"][: len(enter)] == enter
    assert task["gres"] == "gpu:a100:2"
    assert "--gres=gpu:a100:2" in rendered.commands[0]


def test_what_a_profile_asks_for_is_asked_of_sbatch():
    overrides = [
        "slurm.partition=gpu", "slurm.account=me", "slurm.qos=high", "slurm.nodes=4", "slurm.walltime=2-00:30:00",
        "slurm.memory_per_node=64G", "slurm.cpus_per_node=8", "slurm.signal_before_s=300",
        'slurm.options=["--comment=two words"]',
    ]  # fmt: skip
    _, rendered = render(overrides=overrides, after=["17", "18"])
    assert {
        "--partition=gpu", "--account=me", "--qos=high", "--nodes=4", "--time=2-00:30:00", "--mem=64G",
        "--cpus-per-task=8", "--signal=B:USR2@300", "--requeue", "--comment=two words", "--dependency=afterok:17:18",
    } <= set(rendered.commands[0])  # fmt: skip


def test_seeds_become_an_array_and_stages_apart_wait_for_each_other():
    jobs = seeded(make_job(), [3, 4, 7])
    submission, rendered = render(jobs=jobs)
    assert "--array=0-2" in rendered.commands[0]
    assert [output.rpartition("/")[2] for output in submission.outputs] == ["seed_3", "seed_4", "seed_7"]
    assert "seed = 7" in rendered.files["jobs/2.toml"]
    _, apart = render(apart=True, stages=["run"])
    assert len(apart.commands) == 4
    assert [json.loads(apart.files[f"{n}/task.json"])["stages"] for n in range(4)] == [
        [[stage, "{job}"]] for stage in ("label", "train", "sample", "evaluate")
    ]
    assert "--dependency=afterok:{previous}" in apart.commands[1]


def test_paths_are_absolute_and_nothing_is_written_before_it_is_sent(tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    _submission, rendered = render(jobs=[make_job(data={"source": "table.csv"})])
    job = rendered.files["jobs/0.toml"]
    assert f'source = "{tmp_path}/table.csv"' in job
    assert f'dir = "{tmp_path}/runs/a b"' in job
    assert not (tmp_path / "runs").exists()
    assert list(known()) == []


@pytest.mark.parametrize("to", ["slurm", "ray"])
def test_what_is_sent_is_read_by_the_user_alone(to):
    """A site's variables may be keys, and many people can read the file system of a cluster."""
    overrides = ["ray.address=http://head:8265", "setup.environment.API_TOKEN=the-secret"]
    submission, rendered = render(to, overrides=overrides)
    write_files(submission, rendered)
    assert any("the-secret" in content for content in rendered.files.values())
    assert {name: (submission.path / name).stat().st_mode & 0o077 for name in rendered.files} == dict.fromkeys(
        rendered.files, 0
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["slurm.partitoin=gpu"], "did you mean slurm.partition"),
        (["slurm.walltime=soon"], "slurm.walltime"),
        (["slurm.options=[\"-p x\"]"], "no long option"),
        (["setup.environment.A-B=1"], "setup.environment"),
        (["slurm.nodes=0"], "slurm.nodes"),
    ],
)  # fmt: skip
def test_a_profile_is_checked_in_full(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_profile(None, overrides)


def test_an_inline_job_wants_one_node():
    with pytest.raises(ConfigError, match=r"slurm\.nodes = 1"):
        render(jobs=[make_job(executor={"kind": "inline"})], overrides=["slurm.nodes=2"])


@pytest.mark.parametrize("kind", ["auto", "ray", "inline"])
def test_ray_is_started_for_every_kind_but_inline(kind):
    _, rendered = render(jobs=[make_job(executor={"kind": kind})])
    assert json.loads(rendered.files["task.json"])["needs_ray"] is (kind != "inline")


def test_jobs_with_and_without_ray_are_no_submission():
    with pytest.raises(ConfigError, match=r'some have executor\.kind = "inline"'):
        render(jobs=[make_job(executor={"kind": kind}) for kind in ("auto", "inline")])


def test_unknown_submissions_are_named():
    with pytest.raises(ConfigError, match="`sfg jobs` lists them"):
        find("nothing")


# KubeRay


KUBE = ["kuberay.queue=team", "kuberay.gpus=1", 'kuberay.volumes=[{claim="shared", path="/shared"}]',
        'kuberay.tolerations=[{key="nvidia.com/gpu"}]', 'kuberay.secrets=["s3"]', "kuberay.deadline_s=3600",
        "kuberay.environment.A=b c"]  # fmt: skip


def manifests(rendered):
    return list(yaml.safe_load_all(rendered.files["0.yaml"]))


def test_a_ray_job_and_its_file():
    job = make_job(output={"dir": "/shared/run"})
    _submission, rendered = render("kuberay", [job], KUBE, name="My Job $(x)")
    config, ray_job = manifests(rendered)
    assert config["kind"] == "ConfigMap"
    assert "address" not in config["data"]["job.toml"]
    name = ray_job["metadata"]["name"]
    assert name == config["metadata"]["name"]
    assert name.startswith("sfg-my-job-x-")
    assert len(name) <= 40
    spec = ray_job["spec"]
    assert spec["entrypoint"] == "sfg run /etc/sfg/job.toml --set executor.address=auto"
    assert spec["suspend"] is True
    assert ray_job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]
    (container,) = worker["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "A", "value": "b c"} in container["env"]
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert worker["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert rendered.commands[0][:2] == ["kubectl", "apply"]


def unknown_fields(value, schema, place="spec"):
    """What of a manifest KubeRay does not know, or would refuse: a generator of sentences."""
    if isinstance(schema, str):
        kinds = {"string": str, "integer": int, "boolean": bool, "number": (int, float), "object": dict}
        if schema in kinds and not isinstance(value, kinds[schema]):
            yield f"{place} is {value!r}, not {schema}"
        return
    if "enum" in schema:
        if value not in schema["enum"]:
            yield f"{place} = {value!r} is none of {schema['enum']}"
    elif "items" in schema:
        for number, item in enumerate(value):
            yield from unknown_fields(item, schema["items"], f"{place}[{number}]")
    elif "values" in schema:
        for key, item in value.items():
            yield from unknown_fields(item, schema["values"], f"{place}.{key}")
    else:
        yield from (f"{place}.{key} is missing" for key in schema.get("required", ()) if key not in value)
        for key, item in value.items():
            if key in schema["fields"]:
                yield from unknown_fields(item, schema["fields"][key], f"{place}.{key}")
            else:
                yield f"{place}.{key} is no field"


RAYJOB_FIELDS = json.loads(Path(__file__).with_name("rayjob_fields.json").read_text())["spec"]


AUTOSCALING = ["kuberay.autoscaling=true", "kuberay.min_workers=0", "kuberay.workers=8"]


@pytest.mark.parametrize("overrides", [[], KUBE, AUTOSCALING])
def test_every_field_is_one_that_kuberay_publishes(overrides):
    _, rendered = render("kuberay", [make_job(output={"dir": "s3://b/x"})], overrides)
    spec = manifests(rendered)[1]["spec"]
    assert list(unknown_fields(spec, RAYJOB_FIELDS)) == []


def test_the_check_of_fields_finds_what_is_wrong():
    wrong = {
        "entrypiont": "x", "backoffLimit": "3", "submissionMode": "K8sJobMode",
        "rayClusterSpec": {"headGroupSpec": {"rayStartParams": {"num-cpus": 0}}, "authOptions": {"mode": "tokens"}},
    }  # fmt: skip
    assert sorted(unknown_fields(wrong, RAYJOB_FIELDS)) == [
        "spec.backoffLimit is '3', not integer",
        "spec.entrypiont is no field",
        "spec.rayClusterSpec.authOptions.mode = 'tokens' is none of ['disabled', 'token']",
        "spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus is 0, not string",
        "spec.rayClusterSpec.headGroupSpec.template is missing",
    ]


def test_the_entry_point_runs_as_the_manifest_has_it(tmp_path):
    """The shell's words are those that were meant, for one stage and for several."""
    stub = tmp_path / "bin" / "sfg"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s " "$@" >> "$OUT"\n')
    stub.chmod(0o755)
    words = "/etc/sfg/job.toml --set executor.address=auto "
    for stages, expected in ((["run"], f"run {words}"), (["label", "train"], f"label {words}train {words}")):
        out = tmp_path / stages[0]
        _, rendered = render("kuberay", [make_job(output={"dir": "s3://b/x"})], stages=stages)
        environment = {"PATH": f"{stub.parent}:{os.environ['PATH']}", "OUT": str(out)}
        subprocess.run(["sh", "-c", manifests(rendered)[1]["spec"]["entrypoint"]], env=environment, check=True)
        assert out.read_text() == expected


def test_a_place_that_pods_do_not_share_is_refused():
    with pytest.raises(ConfigError, match=r"output\.dir .* is on no volume"):
        render("kuberay", [make_job(output={"dir": "/home/me/run"})], KUBE)
    with pytest.raises(ConfigError, match=r"data\.source .* is on no volume"):
        render("kuberay", [make_job(data={"source": "/home/me/x.npz"}, output={"dir": "s3://b/x"})], KUBE)


# A cluster that runs


def test_a_running_cluster_is_sent_the_job_by_its_own_command(tmp_path):
    with pytest.raises(ConfigError, match=r"ray\.address"):
        render("ray")
    _submission, rendered = render("ray", overrides=["ray.address=http://127.0.0.1:8265"], stages=["label", "train"])
    (command,) = rendered.commands
    assert command[command.index("job") : command.index("job") + 2] == ["job", "submit"]
    assert command[-1] == " && ".join(f"sfg {stage} 0.toml --set executor.address=auto" for stage in ("label", "train"))
    assert "address" not in rendered.files["upload/0.toml"]


@pytest.mark.parametrize("name", ["ray-launcher.yaml", "ray-spot.yaml"])
def test_the_launchers_files_are_what_ray_up_takes(name):
    """Against the schema that Ray brings."""
    import jsonschema
    import ray.autoscaler

    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    document = yaml.safe_load((Path(__file__).parents[2] / "cluster" / name).read_text())
    jsonschema.validate(document, schema)
    starts = " ".join(document["head_start_ray_commands"] + document["worker_start_ray_commands"])
    assert starts.count("RAY_AUTH_MODE=token") == 2
    assert "--dashboard-host=127.0.0.1" in starts
    assert "~/.ray/auth_token" in document["file_mounts"]


def test_enroot_gets_variables_by_name_and_no_value():
    _, rendered = render(
        overrides=["setup.container.image=x", "setup.container.runtime=enroot", "setup.environment.A=b c"]
    )
    task = json.loads(rendered.files["task.json"])
    assert task["sfg"][:11] == [
        "enroot", "start", "--env", "RAY_AUTH_MODE", "--env", "RAY_AUTH_TOKEN", "--env", MANY_MACHINES, "--env",
        "A", "x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("slurm.walltime=90", "walltime", "90"),
        ("slurm.walltime=01:30:00", "walltime", "01:30:00"),
        ("slurm.walltime=2-12", "walltime", "2-12"),
        ("slurm.account=1234", "account", "1234"),
    ],
)
def test_values_without_quotes(override, key, value):
    assert getattr(load_profile(None, [override]).slurm, key) == value


def test_a_notice_that_leaves_no_time_is_refused():
    with pytest.raises(ConfigError, match=r"slurm\.signal_before_s = 180 leaves 0 s"):
        render(overrides=["slurm.walltime=3"])


def test_apart_and_stages_do_not_go_together():
    with pytest.raises(ConfigError, match="leave --stages out"):
        render(apart=True, stages=["label"])


def test_slurms_words_about_an_outer_job_stay_outside(monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    environment = slurm._outside_of_jobs()
    assert "SLURM_ARRAY_TASK_ID" not in environment
    assert environment["SLURM_CONF"] == "/etc/slurm.conf"


@pytest.mark.parametrize(("text", "tasks"), [("3", [3]), ("0-3%2", [0, 1, 2, 3]), ("1,4-5", [1, 4, 5])])
def test_task_numbers_as_slurm_writes_them(text, tasks):
    assert slurm._tasks(text) == tasks


def test_shards_at_work_have_the_time_that_there_is_before_the_limit():
    for own, ahead, expected in ((None, 180, 120.0), (None, 45, 5.0), (30.0, 180, 30.0), (600.0, 180, 120.0)):
        job = make_job(executor={"kind": "ray"} | ({} if own is None else {"notice_s": own}))
        _, rendered = render(jobs=[job], overrides=[f"slurm.signal_before_s={ahead}"])
        assert tomllib.loads(rendered.files["jobs/0.toml"])["executor"]["notice_s"] == expected


def test_a_signal_too_near_to_the_limit_is_refused():
    with pytest.raises(ConfigError, match=r"slurm\.signal_before_s"):
        load_profile(None, ["slurm.signal_before_s=20"])


def test_whole_nodes_have_all_their_memory():
    assert {"--exclusive", "--mem=0"} <= set(render()[1].commands[0])
    for override in ("slurm.memory_per_node=4G", "slurm.cpus_per_node=2"):
        assert "--mem=0" not in render(overrides=[override])[1].commands[0]


def test_variables_reach_the_inside_of_an_apptainer_that_cleans_its_environment():
    _, rendered = render(overrides=["setup.container.image=x", 'setup.container.options=["--cleanenv"]'])
    assert json.loads(rendered.files["task.json"])["container_prefixes"] == ["APPTAINERENV_", "SINGULARITYENV_"]
    assert json.loads(render()[1].files["task.json"])["container_prefixes"] == []


def test_a_stage_may_have_options():
    stages = ["scale --workers 1,2 --modes 'strong,weak'"]
    words = ["scale", "{job}", "--workers", "1,2", "--modes", "strong,weak"]
    assert json.loads(render(stages=stages)[1].files["task.json"])["stages"] == [words]
    _, rendered = render("kuberay", [make_job(output={"dir": "s3://b/x"})], stages=stages)
    assert (
        manifests(rendered)[1]["spec"]["entrypoint"]
        == "sfg scale /etc/sfg/job.toml --workers 1,2 --modes strong,weak --set executor.address=auto"
    )
    with pytest.raises(ConfigError, match="No closing quotation"):
        render(stages=["scale --workers '1"])


def test_keys_that_do_not_go_together_are_refused_before_the_queue(tmp_path):
    job = tmp_path / "job.toml"
    job.write_text('[data]\nsource = "moons"\n[labels]\nshard_rows = 512\nbatch_size = 1024\n')
    done = CliRunner().invoke(cli.app, ["submit", str(job), "--to", "slurm"])
    assert done.exit_code != 0
    assert "labels.shard_rows = 512" in str(done.exception) + done.output
    assert list(known()) == []
