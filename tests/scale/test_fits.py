"""Laws of scaling from times that follow them, and efficiencies."""

import numpy as np
import pytest

from sfg_dist.studies.scale.fits import amdahl, efficiencies, fit_laws, universal
from sfg_dist.studies.scale.results import MissingLaw, Run


def noisy(law, parameters, workers, repeats=5, noise=0.02, seed=0):
    generator = np.random.default_rng(seed)
    n = np.repeat(np.asarray(workers, dtype=float), repeats)
    times = law(n, np.array(parameters)) * np.exp(noise * generator.standard_normal(len(n)))
    return n.astype(int).tolist(), times.tolist()


def test_amdahls_share_is_found_within_its_interval():
    workers, times = noisy(amdahl, (100.0, 0.08), (1, 2, 4, 8, 16))
    law = fit_laws(workers, times).amdahl
    share = law.serial_share
    assert share.low <= 0.08 <= share.high
    assert share.value == pytest.approx(0.08, abs=0.01)
    assert law.time_of_one_s.value == pytest.approx(100, rel=0.03)
    assert law.residual < 0.04


def test_contention_and_coherence_are_told_apart():
    workers, times = noisy(universal, (100.0, 0.05, 0.002), (1, 2, 4, 8, 16, 32), noise=0.01)
    law = fit_laws(workers, times).universal
    assert law.contention.value == pytest.approx(0.05, abs=0.02)
    assert law.coherence.value == pytest.approx(0.002, abs=0.0007)


def test_more_noise_means_a_wider_interval():
    widths = []
    for noise in (0.005, 0.05):
        share = fit_laws(*noisy(amdahl, (100.0, 0.1), (1, 2, 4), noise=noise)).amdahl.serial_share
        widths.append(share.high - share.low)
    assert widths[1] > 3 * widths[0]


def test_too_few_numbers_of_workers_are_said():
    laws = fit_laws([1, 1, 2, 2], [10.0, 10.1, 5.5, 5.4])
    assert laws.amdahl.serial_share.low is not None
    assert laws.universal == MissingLaw("needs runs with 3 numbers of workers")
    assert isinstance(fit_laws([4], [1.0]).amdahl, MissingLaw)


def test_as_many_runs_as_numbers_leave_no_interval():
    law = fit_laws([1, 2], [100.0, 55.0]).amdahl
    share = law.serial_share
    assert share.value == pytest.approx(0.1, abs=1e-3)
    assert (share.low, share.high) == (None, None)
    assert not law.is_tested
    assert fit_laws([1, 2, 4], [100.0, 55.0, 32.5]).amdahl.is_tested


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("law", "parameters"), [(amdahl, (100.0, 0.08)), (universal, (100.0, 0.05, 0.001))])
def test_nine_intervals_in_ten_hold_the_truth(law, parameters):
    """Three runs of each number, as a study has them."""
    held = []
    for seed in range(200):
        workers, times = noisy(law, parameters, (1, 2, 4, 8, 16), repeats=3, noise=0.02, seed=seed)
        laws = fit_laws(workers, times)
        numbers = [laws.amdahl.serial_share] if law is amdahl else [laws.universal.contention, laws.universal.coherence]
        held += [number.low <= truth <= number.high for number, truth in zip(numbers, parameters[1:], strict=True)]
    assert 0.84 < np.mean(held) < 0.97


def test_a_law_that_does_not_fit_has_wide_intervals():
    workers, times = [1, 2, 4, 8], [100.0, 70.0, 20.0, 19.0]
    share = fit_laws(workers, times).amdahl.serial_share
    assert share.high - share.low > 0.1


def test_the_number_of_workers_that_do_the_most():
    law = fit_laws(*noisy(universal, (100.0, 0.05, 4e-4), (1, 2, 4, 8, 16, 32, 64), noise=0.001)).universal
    assert law.peak == pytest.approx(np.sqrt(0.95 / 4e-4), rel=0.05)
    assert fit_laws(*noisy(amdahl, (100.0, 0.05), (1, 2, 4), noise=0.02)).universal.peak is None


def efficiency(workers, wall_s, rows, mode):
    runs = [Run("label", mode, n, t, rows=r, parts_s={"end": t}) for n, t, r in zip(workers, wall_s, rows, strict=True)]
    return efficiencies(runs)


def test_strong_and_weak_efficiency():
    strong = efficiency([1, 2, 2], [10.0, 5.0, 6.25], [100, 100, 100], "strong")
    assert [entry.efficiency for entry in strong] == pytest.approx([1.0, 0.9])
    assert strong[1].efficiency_low == pytest.approx(0.8)
    assert strong[1].efficiency_high == pytest.approx(1.0)
    assert strong[1].parts_s == {"end": 5.0}  # of the faster run of two
    weak = efficiency([1, 4], [10.0, 12.5], [100, 400], "weak")
    assert weak[1].efficiency == pytest.approx(0.8)
    late = efficiency([2, 4], [10.0, 10.0], [100, 100], "strong")  # against the fewest that there were
    assert late[1].efficiency == pytest.approx(0.5)
