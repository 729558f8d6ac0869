"""Models and checkpoints whose parts do not fit each other: refused by name before a kernel sees them."""

from __future__ import annotations

import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from commands import sfg
from safetensors.torch import load, save

from sfg_dist.data import Transform
from sfg_dist.data.frames import numpy_columns
from sfg_dist.distributed.fit.checkpoints import load_average, load_fitted, resume, save_fitted
from sfg_dist.job.config import TrainConfig
from sfg_dist.job.errors import DocumentError, StoreError, TrainingError
from sfg_dist.model.calibration import Calibration
from sfg_dist.model.cell_network import CellNetwork
from sfg_dist.model.early_stopping import EarlyStopping
from sfg_dist.model.encoder import Encoder
from sfg_dist.model.encoder_trainer import EncoderTrainer, Tables, load_finished
from sfg_dist.model.expert_network import ExpertNetwork
from sfg_dist.model.generator import Generator
from sfg_dist.model.likelihood import Blend, Mass, Mixture
from sfg_dist.model.mlp import MLP
from sfg_dist.model.pair_maps import PairMaps
from sfg_dist.model.trainer import Progress, Trainer

DIM = 3
MASS = {"value": 1.0, "standard_error": 0.0, "plain": 1.0, "plain_error": 0.0, "num_rows": 10}


def calibration():
    """Two rounds and a map of a pair, all the identity."""
    knots = np.tile(np.linspace(-3, 3, 5), (2, DIM, 1))
    windows = np.array([[-1.0, 0.0, 1.0]])
    pairs = PairMaps(
        np.array([[0, 2]]),
        windows,
        np.zeros((1, 3)),
        np.ones((1, 3)),
        np.linspace(-2, 2, 4)[None],
        np.zeros((1, 3, 4)),
    )
    return Calibration(np.zeros((2, DIM)), np.stack([np.eye(DIM)] * 2), np.zeros((2, DIM)), knots, knots.copy(), pairs)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A whole generator: its document and its tensors."""
    rows = np.random.default_rng(0).standard_normal((200, DIM))
    transform = Transform.fit(rows, ["a", "b", "c"], kind="quantile")
    generator = Generator(
        MLP(DIM, width=8, depth=1).eval(), transform, calibration(), {"train": {}}, {},
        encoder=Encoder(DIM, width=8, depth=1).eval(), mass=Mass(1.0, 0.0, 1.0, 0.0, 10),
        blend=Blend(0.3, Mixture(ones(6) / 6, 0 * ones(6, DIM), torch.eye(DIM).double().expand(6, DIM, DIM))),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    generator.save(folder)
    return json.loads((folder / "generator.json").read_text()), load((folder / "model.safetensors").read_bytes())


@pytest.fixture
def model(files, tmp_path):
    """A function that writes the generator with other tensors (None takes one away) and other fields."""

    def write(tensors=None, **fields):
        document, whole = files
        kept = {name: tensor for name, tensor in (whole | (tensors or {})).items() if tensor is not None}
        (tmp_path / "generator.json").write_text(json.dumps(document | fields))
        (tmp_path / "model.safetensors").write_bytes(save({name: each.contiguous() for name, each in kept.items()}))
        return tmp_path

    return write


@pytest.mark.slow
def test_the_whole_model_is_read(model):
    before = torch.random.get_rng_state()
    generator = Generator.load(model())
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.isfinite(generator.sample(5)).all()
    assert all(parameter.device.type == "cpu" for parameter in generator.network.parameters())


def ones(*shape, dtype=torch.float64):
    return torch.ones(shape, dtype=dtype)


KNOTS = torch.linspace(-3, 3, 5, dtype=torch.float64).expand(2, DIM, 5)
ONE_COLUMN = {"calibration.knots": KNOTS[:, :1], "calibration.values": KNOTS[:, :1]}
TENSORS = {
    # name: (tensors, what is said)
    "fewer columns of knots": (ONE_COLUMN, "knots is float64"),
    "more columns of knots": ({"calibration.knots": ones(2, 9, 5), "calibration.values": ones(2, 9, 5)}, "knots is"),
    "fewer images": ({"calibration.values": KNOTS[:, :, :2]}, "values is float64"),
    "one knot": ({"calibration.knots": KNOTS[:, :, :1], "calibration.values": KNOTS[:, :, :1]}, "two knots or more"),
    "float32 knots": ({"calibration.knots": KNOTS.float()}, "knots is float32"),
    "falling knots": ({"calibration.knots": KNOTS.flip(2)}, "knots holds knots that do not ascend"),
    "NaN knots": ({"calibration.knots": KNOTS * float("nan")}, "knots holds numbers that are not finite"),
    "falling images": ({"calibration.values": KNOTS.flip(2)}, "values holds knots that do not ascend"),
    "other rounds": ({"calibration.centers": ones(1, DIM)}, "centers is float64"),
    "broadcast maps": ({"calibration.maps": ones(2, DIM, 1)}, "maps is float64"),
    "wider maps": ({"calibration.maps": ones(2, DIM, 7)}, "maps is float64"),
    "no shifts": ({"calibration.shifts": None}, "its arrays are not"),
    "another array": ({"calibration.more": ones(2)}, "its arrays are not"),
    "column beyond": ({"calibration.pair_columns": torch.tensor([[0, 3]])}, "a column beyond the 3"),
    "column below": ({"calibration.pair_columns": torch.tensor([[-1, 2]])}, "a column beyond the 3"),
    "columns of one": ({"calibration.pair_columns": torch.tensor([[1]])}, "not of two columns"),
    "columns in float": ({"calibration.pair_columns": ones(1, 2)}, "not of two columns"),
    "fewer windows": ({"calibration.pair_means": ones(1, 2)}, "means is float64"),
    "fewer shifts": ({"calibration.pair_shifts": ones(1, 3, 3)}, "shifts is float64"),
    "more maps of shifts": ({"calibration.pair_knots": ones(2, 4)}, "knots is float64"),
    "spread of nothing": ({"calibration.pair_spreads": ones(1, 3) * 0}, "a spread of 0"),
    "falling windows": ({"calibration.pair_centers": torch.tensor([[1.0, 0.0, -1.0]]).double()}, "do not ascend"),
    "infinite pair": ({"calibration.pair_knots": ones(1, 4) * float("inf")}, "not finite"),
    "no pair_centers": ({"calibration.pair_centers": None}, "its maps of pairs are not"),
    "narrower layer": ({"network.out.weight": ones(DIM, 4, dtype=torch.float32)}, r"network\.?: tensor out.weight is"),
    "layer of one": ({"network.out.weight": ones(1, 1, dtype=torch.float32)}, "tensor out.weight is float32 of shape"),
    "wider skip": ({"network.skip.weight": ones(DIM, 9, dtype=torch.float32)}, "tensor skip.weight"),
    "float64 layer": ({"network.out.weight": ones(DIM, 8)}, r"is float64 of shape \(3, 8\), expected float32"),
    "integer layer": ({"network.out.bias": ones(DIM, dtype=torch.int64)}, "is int64"),
    "no bias": ({"network.out.bias": None}, "tensor out.bias is missing"),
    "another layer": ({"network.more": ones(1)}, "tensor more is no part of it"),
    "NaN weight": ({"network.out.bias": ones(DIM, dtype=torch.float32) * float("nan")}, "not finite"),
    "no part": ({"owner.weight": ones(1)}, "tensor owner.weight belongs to no part"),
    "half a name": ({"network": ones(1)}, "tensor  is no part of it"),
    "encoder's layer": ({"encoder.first.weight": ones(8, 1, dtype=torch.float32)}, "encoder: tensor first.weight is"),
    "encoder's skip": ({"encoder.skip.weight": None}, "encoder: tensor skip.weight is missing"),
    "mixture of another width": ({"mixture.means": ones(6, 2)}, "mixture: tensor"),
    "mixture without means": ({"mixture.means": None}, "mixture: tensor means is missing"),
    "weights beyond 1": ({"mixture.weights": ones(6)}, "mixture: weights that do not sum to 1"),
    "component without width": ({"mixture.factors": 0 * ones(6, DIM, DIM)}, "a component without width"),
    "one column more": ({"transform.constants": ones(4) * float("nan")}, "transform is damaged"),
    "constant column": ({"transform.constants": torch.tensor([1.0, float("nan"), float("nan")]).double()}, "transform"),
    "knots of no column": ({"transform.knot_counts": torch.tensor([4, 4])}, "transform is damaged"),
    "negative knots": ({"transform.knot_counts": torch.tensor([-4, 4, 600])}, "transform is damaged"),
    "bfloat16": ({"transform.scale": ones(3, dtype=torch.bfloat16)}, "a type that no array has"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit_are_refused(model, name):
    tensors, words = TENSORS[name]
    with pytest.raises(StoreError, match=f"is damaged or of another version: .*{words}"):
        Generator.load(model(tensors))


SMALL = {"dim": DIM, "width": 8, "depth": 1}
DOCUMENTS = {
    "wide": ({"network": {"dim": DIM, "width": 1_000_000, "depth": 1}}, "tensor hidden"),
    "wider than any": ({"network": {"dim": DIM, "width": 2**40}}, "width must be a whole number of 1 to"),
    "deep": ({"network": {"dim": DIM, "width": 8, "depth": 60_000}}, "depth = 60,000, and the file has"),
    "depth": ({"network": {"dim": DIM, "width": 8, "depth": -1}}, "depth must be"),
    "noise": ({"network": {**SMALL, "num_noise": 500_000}}, "expected float32"),
    "dim": ({"network": {"dim": 2.5}}, "dim must be"),
    "no dim": ({"network": {"width": 8}}, "dim is missing"),
    "block": ({"network": {**SMALL, "block": "other"}}, "block must be one of plain, residual"),
    "activation": ({"network": {**SMALL, "activation": "__class__"}}, "activation must be one"),
    "skip": ({"network": {**SMALL, "linear_skip": "no"}}, "linear_skip must be"),
    "unknown": ({"network": {**SMALL, "device": "cuda"}}, "does not know, 'device'"),
    "other network": ({"network": {**SMALL, "block": "plain"}}, "tensor hidden"),
    "list": ({"network": [DIM]}, "network must be a table"),
    "no metadata": ({"transform": {}}, "transform is damaged: its words: kind is missing"),
    "condition": ({"condition": ["a"]}, "the transform has 2 columns to draw and 1 that are given"),
    "no column": ({"condition": ["z"]}, "'z'"),
    "condition of text": ({"condition": "a"}, "condition must be a list"),
    "job": ({"job": [1]}, "job must be a table"),
    "metrics": ({"metrics": "good"}, "metrics must be a table"),
    "encoder": ({"encoder": {"network": {"dim": DIM, "width": 900_000, "depth": 1}, "mass": 5}}, "mass must be"),
    "share": ({"encoder": {"network": {"dim": DIM, "width": 8, "depth": 1}, "mass": MASS, "mixture_share": 1.0}},
              "mixture_share is 1"),
    "mass of nothing": ({"encoder": {"network": SMALL, "mass": {**MASS, "value": 0.0}}}, "mass.value is 0"),
    "mass": ({"encoder": {"network": {}, "mass": {"value": 0, "standard_error": "a"}}}, "encoder.mass"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_that_do_not_fit_are_refused_without_memory(model, name):
    fields, words = DOCUMENTS[name]
    place = model(**fields)
    tracemalloc.start()
    with pytest.raises(StoreError, match=f"is damaged or of another version: .*{words}"):
        Generator.load(place)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_key_of_a_mass_that_is_not_known_is_passed_over(model):
    encoder = {"network": SMALL, "mass": {**MASS, "__init__": 1}, "mixture_share": 0.3}
    assert Generator.load(model(encoder=encoder)).mass == Mass(**MASS)


NETWORKS = {
    "experts": lambda: ExpertNetwork(DIM, experts=4, width=8, depth=1),
    "cells": lambda: CellNetwork.of_edges([np.array([0.25, 0.5]), np.array([]), np.array([0.5])], width=8, depth=1),
}
PARTS = {
    "experts in one": ("experts", "out.weight", lambda t: t[:1], "tensor out.weight"),
    "experts beyond": ("experts", "hidden.0.weight", lambda t: torch.cat([t, t]), "tensor hidden.0.weight"),
    "a gate of more": ("experts", "gate.4.weight", lambda t: torch.cat([t, t]), "tensor gate.4.weight"),
    "a tree of fewer nodes": ("experts", "directions", lambda t: t[:2], "tensor directions"),
    "thresholds that are no numbers": ("experts", "thresholds", lambda t: t * float("nan"), "not finite"),
    "offsets without end": ("experts", "offsets", lambda t: t + float("inf"), "not finite"),
    "offsets in words": ("experts", "offsets", lambda t: t.long(), "tensor offsets is int64"),
    "no offsets": ("experts", "offsets", None, "tensor offsets is missing"),
    "fewer cells embedded": ("cells", "embed.weight", lambda t: t[:1], "tensor embed.weight"),
    "fewer logits": ("cells", "logits.0.weight", lambda t: t[:1], "tensor logits.0.weight"),
    "edges that fall": ("cells", "edges", lambda t: t.flip(0), "edges of cells that do not ascend"),
    "edges beyond 1": ("cells", "edges", lambda t: t + 1, "edges of cells that do not ascend"),
    "edges that are equal": ("cells", "edges", lambda t: t * 0 + 0.5, "edges of cells that do not ascend"),
    "edges that are no numbers": ("cells", "edges", lambda t: t * float("nan"), "not finite"),
    "fewer edges": ("cells", "edges", lambda t: t[:2], "tensor edges"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_networks_of_experts_and_cells_that_do_not_fit(model, files, name):
    kind, part, spoil, words = PARTS[name]
    network = NETWORKS[kind]()
    document = {"dim": DIM, **network.shape}
    tensors = {key: None for key in files[1] if key.startswith("network.")}
    tensors |= {f"network.{key}": value.clone() for key, value in network.state_dict().items()}
    assert type(Generator.load(model(tensors, network=document)).network) is type(network)
    tensors[f"network.{part}"] = None if spoil is None else spoil(tensors[f"network.{part}"])
    with pytest.raises(StoreError, match=f"is damaged or of another version: .*{words}"):
        Generator.load(model(tensors, network=document))


def test_a_dtype_of_a_container_that_fills_the_memory(monkeypatch):
    """A million letters a value, of which three are used."""
    table = pa.table({"a": ["abc"] * 4})
    monkeypatch.setattr(numpy_columns, "usable_bytes", lambda: 1 << 20)
    assert numpy_columns.array_of_columns(table, ["<U9"], records=False).tolist() == [["abc"]] * 4
    with pytest.raises(DocumentError, match=r"the rows take 15\.3 MiB in the dtypes of the container"):
        numpy_columns.array_of_columns(table, ["<U1000000"], records=False)


def test_no_weight_is_made_before_the_shapes_fit(model, monkeypatch):
    """torch's own memory is not among what Python traces: each layer must be one without any."""
    devices = []
    make = torch.nn.Linear.__init__
    monkeypatch.setattr(
        torch.nn.Linear,
        "__init__",
        lambda self, *words, **keys: (make(self, *words, **keys), devices.append(self.weight.device.type))[0],
    )
    with pytest.raises(StoreError, match="damaged"):
        Generator.load(model(network={"dim": DIM, "width": 900_000, "depth": 1}))
    assert set(devices) == {"meta"}


HEADER = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        b"\x02\0\0\0\0\0\0\0{}x",
        len(HEADER).to_bytes(8, "little") + HEADER + b"1234",
    ],
    ids=["empty", "all ones", "a long header", "more than its header says", "a large shape"],
)
def test_a_file_of_no_tensors(model, content):
    place = model()
    (place / "model.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match=r"model\.safetensors is no safetensors file|tensor .* is missing"):
        Generator.load(place)


def test_a_model_larger_than_memory_is_not_read(model, monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=300))
    with pytest.raises(StoreError, match=r"model\.safetensors has .* bytes: more than this machine has memory for"):
        Generator.load(model())


@pytest.mark.parametrize(
    "words", [("sample", "-n", 5, "--out", "rows.csv"), ("export", "--out", "model.onnx")], ids=["sample", "export"]
)
def test_commands_say_what_is_wrong_with_a_model(model, words, tmp_path):
    place = model(ONE_COLUMN)
    done = sfg(tmp_path, words[0], place, *words[1:], check=1)
    assert "is damaged or of another version: calibration: knots is float64 of shape (2, 1, 5)" in done.stderr
    assert not list(tmp_path.glob("rows.csv")) + list(tmp_path.glob("model.onnx"))


def test_compiled_code_is_given_no_rows_of_another_width():
    with pytest.raises(ValueError, match="labels have 5 columns, the calibration has 3"):
        calibration()(np.zeros((4, 5), np.float32))


# Checkpoints of a fit.


def trainer(optimizer="muon", width=8):
    torch.manual_seed(0)
    keys = TrainConfig(learning_rate=1e-3, weight_decay=0.0, ema_decay=0.9, optimizer=optimizer)
    made = Trainer(MLP(DIM, width=width, depth=1), keys)
    rows = np.random.default_rng(0).standard_normal((16, DIM)).astype(np.float32)
    made.step(rows, rows, 16, 0.1)
    return made


@pytest.fixture(scope="module")
def checkpoint():
    return trainer().state_files()


def with_tensors(content, **changes):
    tensors = load(content)
    for name, change in changes.items():
        key = next(each for each in tensors if each.startswith(name.replace("__", ".")))
        tensors[key] = change(tensors[key]).contiguous()
    return save(tensors)


CHECKPOINTS = {
    "model": ({"model": lambda t: t[:1]}, "model: tensor"),
    "average of one": ({"average__out__bias": lambda t: t[:1]}, r"average: tensor out\.bias"),
    "average's type": ({"average__out__bias": lambda t: t.double()}, r"out\.bias is float64"),
    "NaN average": ({"average__out__bias": lambda t: t * float("nan")}, "not finite"),
    "momentum of one": ({"optimizer__1__0__momentum": lambda t: t[:1]}, "momentum of parameter 0"),
    "exp_avg": ({"optimizer__0__0__exp_avg": lambda t: t[:1]}, r"exp_avg(_sq)? of parameter 0"),
    "steps": ({"optimizer__0__0__step": lambda t: t.expand(5)}, "step of parameter 0"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_does_not_fit_changes_nothing(checkpoint, name):
    changes, words = CHECKPOINTS[name]
    damaged = checkpoint | {"state.safetensors": with_tensors(checkpoint["state.safetensors"], **changes)}
    fresh = trainer()
    before = fresh.state_files()
    with pytest.raises(TrainingError, match=rf"checkpoint here does not fit this job \(.*{words}"):
        fresh.load_files(damaged, "here")
    assert fresh.state_files() == before


@pytest.mark.parametrize(
    "key",
    [
        "optimizer.9.0.step",
        "optimizer.0.99.step",
        "optimizer.0.x.step",
        "optimizer.0.0.other",
        "optimizer.0.99999999999999999999.step",
        "average.more",
    ],
)
def test_a_checkpoint_with_more_than_the_fit_has(checkpoint, key):
    content = save(load(checkpoint["state.safetensors"]) | {key: torch.ones(())})
    with pytest.raises(TrainingError, match="does not fit this job"):
        trainer().load_files(checkpoint | {"state.safetensors": content}, "here")


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b'{"epoch": "1"}', b"[" * 100_000, b'{"epoch": -1}', b'{"step": 1e400}']
)
def test_a_checkpoint_with_other_progress(checkpoint, content):
    with pytest.raises(TrainingError, match=r"does not fit this job \(progress\.json"):
        trainer().load_files(checkpoint | {"progress.json": content}, "here")


def test_a_whole_checkpoint_is_taken_up_and_a_torn_one_passed_over(checkpoint, tmp_path):
    for step, files in ((1, checkpoint), (2, checkpoint | {"state.safetensors": b"torn"})):
        folder = tmp_path / f"step_{step:09d}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    fresh = trainer(width=8)
    with pytest.warns(UserWarning, match="no safetensors file, or a torn one .*; going on from the one before"):
        resume(tmp_path, fresh.load_files)
    assert fresh.state_files() == checkpoint
    with pytest.raises(Exception, match="no safetensors file"):
        load_average(tmp_path)


def test_a_finished_fit_that_does_not_fit(tmp_path):
    save_fitted(MLP(DIM, width=8, depth=1), tmp_path, Progress())
    load_fitted(tmp_path)
    whole = json.loads((tmp_path / "fitted.json").read_text())
    for change in ({"network": {"dim": DIM, "width": 900_000}}, {"network": {}}, {"history": 5}, {"step": "1"}):
        (tmp_path / "fitted.json").write_text(json.dumps(whole | change))
        with pytest.raises(TrainingError, match=r"the finished fit in .* cannot be used: fitted\.json"):
            load_fitted(tmp_path)
    (tmp_path / "fitted.safetensors").write_bytes(b"torn")
    (tmp_path / "fitted.json").write_text(json.dumps(whole))
    with pytest.raises(TrainingError, match=r"fitted\.safetensors is no safetensors file"):
        load_fitted(tmp_path)


def test_the_best_weights_beside_a_checkpoint():
    weights = MLP(DIM, width=8, depth=1).state_dict()
    early = EarlyStopping(3)
    early.note(1, 0.5, weights)
    files = early.state_files()
    EarlyStopping(3).load_files(files, weights)
    name = next(each for each in files if each.endswith("safetensors"))
    for damaged in (
        files | {name: with_tensors(files[name], out__bias=lambda t: t[:1])},
        files | {name: b"torn"},
        {key: value for key, value in files.items() if key != name},
        {key: b'{"epoch": "1"}' if key != name else value for key, value in files.items()},
    ):
        with pytest.raises(TrainingError, match="the best weights beside a checkpoint cannot be read"):
            EarlyStopping(3).load_files(damaged, weights)


def encoder_trainer():
    torch.manual_seed(0)
    rows = np.random.default_rng(0).standard_normal((300, 2)).astype(np.float32)
    return EncoderTrainer(Encoder(2, width=8, depth=1), Tables(rows, rows, rows, rows[:50]), seed=0)


@pytest.mark.slow
def test_an_encoders_checkpoint_that_does_not_fit_is_not_taken_up():
    """torch spreads a tensor of one number over a whole layer without a word."""
    made = encoder_trainer()
    made.step(0.1)
    content = made.state({})
    fresh = encoder_trainer()
    before = fresh.state({})
    assert before != content
    for changes in ({"model.0": torch.ones(1)}, {"best.2": torch.ones(8, 1)}, {"average.0": torch.ones(8, 2).double()},
                    {"mass.0": torch.ones(1)}, {"optimizer.0.0.exp_avg": torch.ones(1)},
                    {"optimizer.5.0.step": torch.ones(())}, {"progress": torch.zeros(4, dtype=torch.uint8)},
                    {"model.9": torch.ones(1)}):  # fmt: skip
        assert not fresh.load_state(save(load(content) | changes), {})
        assert fresh.state({}) == before
        assert load_finished(Encoder(2, width=8, depth=1), save(load(content) | changes), {}, [None, None]) is None
    assert fresh.load_state(content, {})
    assert fresh.state({}) == content
