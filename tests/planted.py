"""Planted faults: small mistakes in the source that a user would suffer from, and the tests that should catch them.

    python tests/planted.py [NAME ...] [--markers EXPR] [--list]

Each fault is applied to a copy of the checkout in a temporary folder, where its tests then run; the checkout itself is
only read. A fault is caught where a test fails. It is missed where all pass, where none is selected, or where they take
longer than LIMIT_S. Whatever else happens, such as a test file that cannot be imported, says nothing of the tests and
is an error of this tool; so is a test that fails before any fault is planted.

``--markers "not slow and not ray"`` asks what the everyday tests catch by themselves.

Exit status: 0 all caught; 1 one was missed; 2 the tool itself failed on one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 600.0
PASSING = "all of its tests pass"
ENDING_S = 10.0  # from a word to end to the end by force
FIRST_FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Fault:
    """One mistake.

    Attributes:
        name: what it is called.
        file: the source that it is in.
        why: what would go wrong for a user.
        old: the right text, which occurs once in the file.
        new: the wrong text.
        tests: files, or tests of a file, that should catch it.
    """

    name: str
    file: str
    why: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, source: str) -> str:
        """The source with the mistake in it.

        Raises:
            ValueError: the right text is not there once.
        """
        count = source.count(self.old)
        if count != 1:
            raise ValueError(f"{self.name}: its old text occurs {count} times in {self.file}, expected once")
        return source.replace(self.old, self.new)


FLOW = (
    Fault(
        name="flow_sign",
        file="sfg_dist/flow/schedule.py",
        why="Labels move away from the data, so every sample is wrong.",
        old="return z_t / 2 - (beta_sq +",
        new="return z_t / 2 + (beta_sq +",
        tests=("tests/flow/test_schedule.py",),
    ),
    Fault(
        name="multistep_without_floor",
        file="sfg_dist/flow/multistep.py",
        why='Labels of schedule = "linear_floor" are integrated with the kernel of the other schedule.',
        old="((1 + schedule.floor) / beta + beta) * math.exp",
        new="(1 / beta + beta) * math.exp",
        tests=("tests/flow/test_solver.py::test_adams_weights_are_integrals_of_the_kernel",),
    ),
    Fault(
        name="neighbours_carried_the_wrong_way",
        file="sfg_dist/flow/conditional.py",
        why="Conditional samples are biased and too wide, twice as far as without the regression.",
        old="targets = targets - torch.bmm(offsets, slopes)",
        new="targets = targets + torch.bmm(offsets, slopes)",
        tests=("tests/flow/test_conditional.py::test_a_gaussian_law_smeared_by_the_kernel_and_carried_back",),
    ),
    Fault(
        name="padding_not_cut",
        file="sfg_dist/flow/adaptive.py",
        why="Rows that only fill up a batch are counted among those that step control gave up.",
        old="AdaptiveResult(z[:num_rows], evaluations[:num_rows], exceeded[:num_rows])",
        new="AdaptiveResult(z[:num_rows], evaluations, exceeded)",
        tests=("tests/flow/test_adaptive.py::test_bits_of_a_row_do_not_depend_on_the_other_rows",),
    ),
)

STORE = (
    Fault(
        name="folders_not_fsynced",
        file="sfg_dist/store/local.py",
        why="A power cut takes away the name of a committed object whose folder had not reached the disk.",
        old="for level in reversed(levels):\n                os.fsync(level)",
        new="",
        tests=("tests/store/test_location.py::test_a_flush_reaches_the_object_and_every_directory_above_it",),
    ),
    Fault(
        name="checkpoint_not_fsynced",
        file="sfg_dist/store/location.py",
        why="A power cut takes away checkpoints, plans and reports that were said to be written.",
        old="obstore.put(self._store, key, content, use_multipart=False)\n        self.flush(key)",
        new="obstore.put(self._store, key, content, use_multipart=False)",
        tests=("tests/store/test_location.py::test_what_was_written_or_moved_has_reached_the_disk",),
    ),
    Fault(
        name="replaced_by_size_alone",
        file="sfg_dist/store/local.py",
        why="A slow writer writes over what another one has put there since it looked.",
        old="if entry_of(seen.key, facts).version != seen.version:",
        new="if entry_of(seen.key, facts).bytes != seen.bytes:",
        tests=("tests/store/test_location.py::test_a_replacement_needs_the_version_that_was_seen",),
    ),
    Fault(
        name="commit_before_the_read_back",
        file="sfg_dist/store/shards.py",
        why="A shard that the disk spoils is committed all the same, and trained on.",
        old="""\
        for name in ARRAYS:
            yield f"read {name} back"
            if not self._reads_back(name):
                return False
        return self.record is not None or (yield from self._commit())
""",
        new="""\
        is_done = self.record is not None or (yield from self._commit())
        for name in ARRAYS:
            yield f"read {name} back"
            if not self._reads_back(name):
                return False
        return is_done
""",
        tests=("tests/store/test_shards.py::test_a_store_that_gives_back_other_bytes_gets_no_commit",),
    ),
    Fault(
        name="commit_not_flushed",
        file="sfg_dist/store/shards.py",
        why="A shard is reported as done, and a power cut takes its commit away.",
        old='yield "flush commit"\n        self.location.flush(key)',
        new='yield "flush commit"',
        tests=("tests/store/test_protocol.py::test_a_writer_that_is_done_has_left_nothing_that_a_power_cut_takes",),
    ),
    Fault(
        name="digest_not_compared",
        file="sfg_dist/store/verify.py",
        why="`sfg verify` calls a store sound whose rows are not the committed ones.",
        old="if digest is not None and found != digest:",
        new="if digest is not None and len(found) != len(digest):",
        tests=("tests/store/test_verify.py::test_each_damage_is_named_and_only_it_is_mended",),
    ),
    Fault(
        name="window_read_twice",
        file="sfg_dist/store/stream.py",
        why="Each rank reads its rows again in every epoch, though they are in its memory.",
        old="for held in [held for held in self._held if held not in (ranges, kept)]:",
        new="for held in list(self._held):",
        tests=("tests/store/test_stream.py::test_a_store_of_one_window_is_read_once",),
    ),
    Fault(
        name="last_batch_lost",
        file="sfg_dist/store/stream.py",
        why="The rows of the short last batch are never trained on.",
        old="if stop == (step + 1) * self.batch_size or stop == self.num_rows:",
        new="if stop == (step + 1) * self.batch_size:",
        tests=("tests/store/test_stream.py::test_every_row_once_an_epoch_and_every_row_from_its_source",),
    ),
)

DISTRIBUTED = (
    Fault(
        name="encoded_rows_blurred_by_the_variance",
        file="sfg_dist/distributed/labels/labeler.py",
        why="Encoded pairs have another law than decoded ones: their rows are hardly blurred.",
        old='blur = self.plan.sigma_data * self._flow("encode").schedule.blur',
        new='blur = self.plan.sigma_data * self._flow("encode").schedule.blur**2',
        tests=(
            "tests/distributed/test_labels.py::test_encoded_rows_are_blurred_data_and_their_latents_decode_to_them",
        ),
    ),
    Fault(
        name="answer_lost",
        file="sfg_dist/distributed/labels/driver.py",
        why="Of shards that travel together only the first answer counts, and the run never ends.",
        old="for result in results:",
        new="for result in results[:1]:",
        tests=("tests/distributed/test_driver.py::test_short_shards_travel_together_and_a_death_charges_only_one",),
    ),
    Fault(
        name="fed_while_draining",
        file="sfg_dist/distributed/labels/driver.py",
        why="A node that will be taken away goes on getting shards, which are lost with it.",
        old="            worker.leave_by = drain.deadline\n",
        new="",
        tests=(
            "tests/distributed/test_driver.py::test_a_node_that_drains_gets_nothing_new_and_its_worker_is_replaced",
        ),
    ),
    Fault(
        name="hold_not_asked",
        file="sfg_dist/distributed/fit/fit_loop.py",
        why="Two attempts at one fit write over each other's checkpoints.",
        old="more = {} if self.early is None else self.early.state_files()\n        self._require_hold()",
        new="more = {} if self.early is None else self.early.state_files()",
        tests=("tests/distributed/test_hold.py::test_a_fit_that_is_taken_over_writes_no_more_and_the_other_goes_on",),
    ),
    Fault(
        name="progress_before_the_rest",
        file="sfg_dist/distributed/fit/checkpoints.py",
        why="A checkpoint that a kill cut off counts as whole, and the fit goes on without its best weights.",
        old="{**(more or {}), **trainer.state_files()}.items()",
        new="{**trainer.state_files(), **(more or {})}.items()",
        tests=("tests/distributed/test_fit_loop.py::test_the_file_that_makes_a_checkpoint_whole_is_written_last",),
    ),
    Fault(
        name="every_rank_reads_all",
        file="sfg_dist/distributed/fit/training.py",
        why="Each training worker reads the first one's rows: some pairs count twice and others not at all.",
        old="shuffle_rows=settings.shuffle_rows,\n        rank=rank,",
        new="shuffle_rows=settings.shuffle_rows,\n        rank=0,",
        tests=("tests/distributed/test_training.py::test_two_workers_fit_what_one_fits",),
    ),
    Fault(
        name="stopped_actor_left_alive",
        file="sfg_dist/distributed/labels/ray_pool.py",
        why="A process that hangs outlives the run, with its memory and its GPU.",
        old="            if now >= deadline:\n                process.kill()",
        new="            if now >= deadline:\n                continue",
        tests=("tests/distributed/test_faults.py::test_a_process_that_is_still_there_when_its_time_is_over_is_killed",),
    ),
)

MODEL = (
    Fault(
        name="columns_drawn_apart",
        file="sfg_dist/model/cell_network.py",
        why="The columns of a mixed table are drawn without the cells before them, and contradict each other.",
        old="        return added.add_(state)",
        new="        return state",
        tests=(
            "tests/model/test_cell_network.py::test_columns_that_determine_each_other_agree_after_the_fit",
            "tests/model/test_cell_network.py::test_the_cross_entropy_is_that_of_the_drawn_law",
        ),
    ),
    Fault(
        name="map_flat_beyond_its_end",
        file="sfg_dist/model/interpolation.py",
        why="Calibrated samples beyond the last knot all get one value: the upper tails are cut off.",
        old="mapped[row, column] = inside + min(x - first, 0.0) + max(x - last, 0.0)",
        new="mapped[row, column] = inside + min(x - first, 0.0)",
        tests=("tests/model/test_model.py::test_calibration_is_monotone_in_one_dimension_and_finite_far_out",),
    ),
    Fault(
        name="gradient_of_one_rank",
        file="sfg_dist/model/trainer.py",
        why="With n workers the gradient is n times too small, and the fit depends on their number.",
        old="(loss * self.world_size).backward()",
        new="loss.backward()",
        tests=("tests/model/test_model.py::test_gradients_of_uneven_parts_average_to_the_batchs",),
    ),
    Fault(
        name="best_weights_not_copied",
        file="sfg_dist/model/early_stopping.py",
        why="Early stopping gives back the last weights under the name of the best ones.",
        old="self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}",
        new="self.weights = {name: tensor.detach() for name, tensor in weights.items()}",
        tests=(
            "tests/distributed/test_fit_loop.py::test_a_fit_that_gets_no_better_ends_with_the_best_averaged_weights",
        ),
    ),
    Fault(
        name="mass_added",
        file="sfg_dist/model/generator.py",
        why="log_prob adds the mass that it has to take off, and no longer integrates to one.",
        old="values -= math.log(mass.value)",
        new="values += math.log(mass.value)",
        tests=("tests/model/test_encoder.py::test_log_prob_integrates_over_the_users_units_to_one_over_the_mass",),
    ),
)

DATA = (
    Fault(
        name="validation_in_the_test",
        file="sfg_dist/data/preparation.py",
        why="Weights are chosen by rows that the report then judges them by.",
        old="return rows[:first], rows[first:last], rows[last:]",
        new="return rows[:first], rows[first:], rows[last:]",
        tests=("tests/data/test_prepare.py::test_splits_are_disjoint_and_complete",),
    ),
    Fault(
        name="cells_beyond_the_table",
        file="sfg_dist/data/transform.py",
        why="Samples of a column of counts hold values that the table never had, such as -1.",
        old="grid.values(inner.cells(values).clip(*self.cell_ranges[index]))",
        new="grid.values(inner.cells(values))",
        tests=("tests/data/test_transform.py::test_samples_stay_within_the_limits",),
    ),
    Fault(
        name="samples_beyond_the_range",
        file="sfg_dist/data/transform.py",
        why="A few samples of a probability are negative.",
        old="return values if ends == FREE else values.clip(*ends)",
        new="return values",
        tests=("tests/data/test_bounds.py::test_no_sample_leaves_the_observed_range",),
    ),
    Fault(
        name="atoms_left_by_rounding",
        file="sfg_dist/data/transform.py",
        why="A zero at the edge of its interval comes back as the smallest positive value beside it.",
        old="return curve.atoms.hold(values, mapped.astype(np.float32))",
        new="return mapped.astype(np.float32)",
        tests=("tests/data/test_atoms.py::test_every_float32_score_near_an_end_is_on_its_own_side",),
    ),
    Fault(
        name="quantile_ends_swapped",
        file="sfg_dist/data/quantile.py",
        why="A skewed column's long tail goes on with the slope of its short one, and the other way round.",
        old="values = np.concatenate([[knots[0] - first], knots, [knots[-1] + last]])",
        new="values = np.concatenate([[knots[0] - last], knots, [knots[-1] + first]])",
        tests=("tests/data/test_transform.py::test_each_end_goes_on_with_a_slope_of_its_own",),
    ),
    Fault(
        name="pickles_opened",
        file="sfg_dist/data/zarr_codecs.py",
        why="A table or a store from somebody else builds codecs that unpickle what it holds.",
        old="        if name not in allowed:\n            raise _refused(name)",
        new="        if name not in allowed:\n            pass",
        tests=("tests/hostile/test_arrays.py",),
    ),
)

EVALUATE = (
    Fault(
        name="classifier_judged_on_rows_it_saw",
        file="sfg_dist/evaluate/distances.py",
        why="The classifier test says that perfect samples are easily told apart.",
        old="fit(both[fitted], is_judged[fitted])",
        new="fit(both, is_judged)",
        tests=("tests/evaluate/test_metrics.py::test_auc_of_equal_laws_is_one_half_within_noise",),
    ),
    Fault(
        name="page_not_escaped",
        file="sfg_dist/evaluate/templates.py",
        why="A column's name can run a script in the browser of whoever opens the report.",
        old="autoescape=True",
        new="autoescape=False",
        tests=("tests/evaluate/test_report.py::test_what_the_user_wrote_is_escaped_and_never_read_as_mathematics",),
    ),
)

LAUNCH = (
    Fault(
        name="array_of_one_too_many",
        file="sfg_dist/launch/slurm.py",
        why="Slurm starts a task for which there is no job file, and the submission ends as failed.",
        old='f"--array=0-{num_jobs - 1}"',
        new='f"--array=0-{num_jobs}"',
        tests=("tests/launch/test_render.py::test_seeds_become_an_array_and_stages_apart_wait_for_each_other",),
    ),
    Fault(
        name="cancelled_job_comes_back",
        file="sfg_dist/launch/slurm_task.py",
        why="A job that the user has cancelled is put back in the queue.",
        old='return "CANCELLED" in said\n',
        new="return False\n",
        tests=("tests/launch/test_slurm_task.py::test_a_job_at_its_limit_is_requeued_and_a_cancelled_one_is_not",),
    ),
    Fault(
        name="submission_open_to_all",
        file="sfg_dist/launch/submission.py",
        why="Everybody on the cluster can read the tokens and keys among a site's variables.",
        old='_create(path, content, 0o700 if name.endswith(".sh") else 0o600)',
        new='_create(path, content, 0o755 if name.endswith(".sh") else 0o644)',
        tests=("tests/launch/test_render.py::test_what_is_sent_is_read_by_the_user_alone",),
    ),
    Fault(
        name="failed_stage_passed_over",
        file="sfg_dist/launch/slurm_task.py",
        why="A Slurm job whose labelling failed ends with status 0, and jobs that wait for it start.",
        old="            if status:\n                return status\n        return 0",
        new="        return 0",
        tests=("tests/launch/test_slurm.py::test_jobs_that_cannot_start_or_go_on_fail_and_say_why",),
    ),
)

SCALE = (
    Fault(
        name="long_shards_weigh_nothing",
        file="sfg_dist/studies/scale/predict.py",
        why="A prediction for longer shards forgets that they have more bytes, and promises too much of the store.",
        old="shard_bytes=limits.shard_bytes * share",
        new="shard_bytes=limits.shard_bytes",
        tests=("tests/scale/test_study.py::test_a_longer_shard_has_more_bytes",),
    ),
)

COMPARE = (
    Fault(
        name="judged_by_training_rows",
        file="sfg_dist/studies/compare/judging.py",
        why="A method that gives back its training rows wins the comparison.",
        old="classifier_test(rows, table.coded(table.test), seed=seed)",
        new="classifier_test(rows, table.coded(table.train), seed=seed)",
        tests=("tests/compare/test_records.py::test_figures_come_from_the_test_rows",),
    ),
)

TOP = (
    Fault(
        name="wrong_request_ends_as_failed_work",
        file="sfg_dist/cli/command.py",
        why="A script cannot tell a store of another plan from work that failed and may be tried again.",
        old="isinstance(error, (ConfigError, DataError, PlanMismatchError))",
        new="isinstance(error, (ConfigError, DataError))",
        tests=("tests/test_cli.py::test_a_store_of_another_plan_is_refused_and_kept",),
    ),
    Fault(
        name="secrets_in_the_log",
        file="sfg_dist/store/event_log.py",
        why="Keys of an object store stand in events.jsonl as a library's error message had them.",
        old="document = without_credentials(entry)",
        new="document = entry",
        tests=("tests/hostile/test_secrets.py",),
    ),
    Fault(
        name="samples_of_an_older_model_kept",
        file="sfg_dist/pipeline/pipeline.py",
        why="A run that was trained anew reports the figures of the older model's samples.",
        old='return f"model {model}, {job.num_samples} rows,',
        new='return f"{job.num_samples} rows,',
        tests=("tests/test_pipeline.py::test_samples_of_another_model_are_not_measured",),
    ),
    Fault(
        name="repair_labels_everything",
        file="sfg_dist/pipeline/repair.py",
        why="`sfg repair` starts to label all that is pending, not only what is bad.",
        old="replace(label_settings(job, emit), only=shards)",
        new="label_settings(job, emit)",
        tests=("tests/test_mending.py::test_repair_leaves_pending_shards_pending",),
    ),
    Fault(
        name="random_rows_repeat",
        file="sfg_dist/job/plan.py",
        why="Each range of rows draws the numbers of the first ones, so shards repeat each other's latents.",
        old="drawn, first = draw(block), block * DRAW_ROWS",
        new="drawn, first = draw(block - start // DRAW_ROWS), block * DRAW_ROWS",
        tests=("tests/test_plan.py::test_rows_do_not_depend_on_how_they_are_asked_for",),
    ),
)

FAULTS = (*FLOW, *STORE, *DISTRIBUTED, *MODEL, *DATA, *EVALUATE, *LAUNCH, *SCALE, *COMPARE, *TOP)


@dataclass(frozen=True)
class Outcome:
    """What became of a fault.

    Attributes:
        verdict: "caught", "MISSED" or "ERROR".
        seconds: that its tests took.
        said: the first failing test, or why there is none.
    """

    verdict: str
    seconds: float
    said: str


def copy_checkout(target: Path) -> None:
    """Copy what git knows of the checkout, and new files that it does not ignore; no links, no history."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        source, path = ROOT / name, target / name
        if source.is_file():  # else it is deleted, and git does not know yet
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, path)


def environment_of(copy: Path) -> dict[str, str]:
    """The environment in which a copy's tests and their child processes see the copy, and nothing of the checkout."""
    others = ("PYTEST_ADDOPTS", "NUMBA_CACHE_DIR")  # other options, and kernels of other sources
    kept = {name: value for name, value in os.environ.items() if name not in others}
    return kept | {"PYTHONPATH": str(copy)}


def try_tests(
    tests: Sequence[str], markers: str | None, fault: Fault | None = None, limit_s: float = LIMIT_S
) -> Outcome:
    """Run tests in a copy of the checkout, in which a fault may be planted."""
    with tempfile.TemporaryDirectory(prefix="planted-", ignore_cleanup_errors=True) as folder:
        copy, log = Path(folder) / "copy", Path(folder) / "log"
        copy_checkout(copy)
        if fault is not None:
            source = copy / fault.file
            source.write_text(fault.apply(source.read_text(encoding="utf-8")), encoding="utf-8")
        environment = environment_of(copy)
        look = [sys.executable, "-c", "import sfg_dist; print(sfg_dist.__file__)"]
        seen = subprocess.run(look, cwd=folder, env=environment, capture_output=True, text=True)
        if seen.stdout.strip() != str(copy / "sfg_dist" / "__init__.py"):
            return Outcome("ERROR", 0.0, f"child processes import {seen.stdout or seen.stderr}, not the copy")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        if markers is not None:
            command += ["-m", markers]
        started = time.monotonic()
        # Into a file: a service that a test left running would hold a pipe open.
        with log.open("wb") as said:
            status = run_within_limit(command, copy, environment, said.fileno(), limit_s)
        return judge(status, time.monotonic() - started, log.read_text(encoding="utf-8", errors="replace"))


def run_within_limit(
    command: Sequence[str], copy: Path, environment: dict[str, str], output: int, limit_s: float
) -> int | None:
    """The exit status of a command in a process group of its own, which ends with it; None where it took too long."""
    tests = subprocess.Popen(
        command, cwd=copy, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        start_new_session=True,
    )  # fmt: skip
    try:
        return tests.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(tests.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            tests.wait(ENDING_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(tests.pid, signal.SIGKILL)
        tests.wait()


def judge(status: int | None, seconds: float, output: str) -> Outcome:
    """What pytest's exit status and its words mean for the fault."""
    if status is None:
        return Outcome("MISSED", seconds, f"its tests took longer than the time limit of {LIMIT_S:g} s")
    if status == 0 and " passed" not in output:
        return Outcome("MISSED", seconds, "its tests are skipped on this machine")
    if status == 0:
        return Outcome("MISSED", seconds, PASSING)
    if status == 5:
        return Outcome("MISSED", seconds, "none of its tests is selected")
    failure = FIRST_FAILURE.search(output)
    if status == 1 and failure is not None:  # a file that cannot be imported is named without a test
        return Outcome("caught", seconds, failure.group(1))
    last = "\n  ".join(output.strip().splitlines()[-15:])
    return Outcome("ERROR", seconds, f"pytest ended with status {status}:\n  {last}")


def main() -> int:
    """Try the faults that are named, or all."""
    parser = argparse.ArgumentParser(description="Plant faults in copies of the checkout and see which tests notice.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="the faults to plant; all of them if none is named")
    parser.add_argument("--markers", metavar="EXPR", help='pytest -m of their tests, such as "not slow and not ray"')
    parser.add_argument("--list", action="store_true", help="say what they are and plant nothing")
    options = parser.parse_args()
    if unknown := set(options.names) - {fault.name for fault in FAULTS}:
        parser.error(f"no fault is called {', '.join(sorted(unknown))}: --list names them")
    chosen = [fault for fault in FAULTS if not options.names or fault.name in options.names]
    if options.list:
        for fault in chosen:
            print(f"{fault.name:40} {fault.file:40} {fault.why}")
        return 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # tests and copy go with this process
    tests = sorted({test for fault in chosen for test in fault.tests})
    outcome = try_tests(tests, options.markers, limit_s=len(chosen) * LIMIT_S)
    if outcome.verdict != "MISSED" or outcome.said != PASSING:
        print(f"Without a fault the tests do not all pass: {outcome.said}")
        return 2
    verdicts = []
    for fault in chosen:
        outcome = try_tests(fault.tests, options.markers, fault)
        verdicts.append(outcome.verdict)
        print(f"{fault.name:40} {outcome.verdict:7} {outcome.seconds:6.1f} s  {outcome.said}", flush=True)
    print(f"{verdicts.count('caught')} of {len(verdicts)} caught")
    return 2 if "ERROR" in verdicts else 1 if "MISSED" in verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
