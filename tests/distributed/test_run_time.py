"""How long the label stage takes and what it costs, from the pace of a worker."""

from dataclasses import replace

import pytest
from machines import PACE, workers

from sfg_dist.studies.estimate.run_time import cost_of, time_of


@pytest.fixture
def plan(make_store):
    return make_store().plan


def test_shards_are_handed_out_whole(plan):
    rows = [128] * 7 + [104]
    four = time_of(rows, plan, workers(), {"cpu": PACE}, data_s=1.0, pads=False)
    assert four.waves == 4
    assert four.integration_s == pytest.approx(4 * 1.28)
    assert four.writing_s == pytest.approx(4 * 0.5)
    three = time_of(rows, plan, workers(cpu=3), {"cpu": PACE}, data_s=1.0, pads=False)
    assert three.waves == 3  # 8 shards by 3 actors: the last wave is not full, and counts whole
    many = time_of(rows, plan, workers(cpu=100), {"cpu": PACE}, data_s=1.0, pads=False)
    assert (many.waves, many.integration_s) == (1, pytest.approx(1.28))
    one = time_of([104], plan, workers(), {"cpu": PACE}, data_s=1.0, pads=True)
    assert one.integration_s == pytest.approx(1.28)  # dense sums of a batch that is filled up


def test_start_up_counts_ray_and_imports_for_actors_alone(plan):
    inline = time_of([128], plan, workers("inline", cpu=1), {"cpu": PACE}, data_s=0.0, pads=False)
    assert inline.start_s == pytest.approx(1.5)
    assert time_of([128], plan, workers(), {"cpu": PACE}, data_s=0.0, pads=False).start_s > 3.5


def test_mixed_workers_share_by_pace(plan):
    fast = replace(PACE, seconds_per_row=0.001, write_s=0.0)
    both = time_of(
        [128] * 11, plan, workers(cuda=1, cpu=1, gpus=1.0), {"cuda": fast, "cpu": PACE}, data_s=0, pads=False
    )
    assert both.waves == 10
    assert both.label_s - both.start_s == pytest.approx(1.78)  # the slow one's only shard


def test_a_group_works_on_one_shard(plan):
    alone = time_of([128] * 8, plan, workers(cpu=4), {"cpu": PACE}, data_s=0.0, pads=False)
    group = time_of([128] * 8, plan, workers(cpu=4, group=2), {"cpu": PACE}, data_s=0.0, pads=False)
    assert (alone.waves, group.waves) == (2, 4)
    assert group.integration_s == pytest.approx(alone.integration_s)


def test_cost(plan):
    spent = time_of([128] * 4, plan, workers(), {"cpu": PACE}, data_s=100.0, pads=False)
    cost = cost_of(spent, workers(), 7.2)
    assert cost.total == pytest.approx(7.2 * 2 * spent.label_s / 3600)
