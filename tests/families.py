"""Tables that are made to break what is said about an error of the posterior mean."""

import numpy as np
import pytest


def line(rng, n):
    return np.outer(rng.standard_normal(n), [1.0, -2.0, 0.5])


FAMILIES = {
    "gaussian": lambda rng, n: rng.standard_normal((n, 3)),
    "one column": lambda rng, n: rng.standard_normal((n, 1)),
    "duplicates": lambda rng, n: np.repeat(rng.standard_normal((max(1, n // 20), 2)), 20, axis=0),
    "identical": lambda rng, n: np.full((n, 2), 0.7),
    "one far outlier": lambda rng, n: np.vstack([rng.standard_normal((n, 3)), [[1e3, 0.0, 0.0]]]),
    "a line": line,
    "heavy tails": lambda rng, n: rng.standard_cauchy((n, 3)).clip(-1e4, 1e4),
    "one column, heavy tails": lambda rng, n: rng.standard_cauchy((n, 1)).clip(-1e4, 1e4),
    "six columns": lambda rng, n: rng.standard_normal((n, 6)),
    "two far clusters": lambda rng, n: rng.standard_normal((n, 2)) * 0.1 + 50 * rng.integers(0, 2, (n, 1)),
    "lattice": lambda rng, n: rng.integers(0, 4, (n, 3)).astype(float),
    "21 columns, 3 of them free": lambda rng, n: (
        rng.standard_normal((n, 3)) @ rng.standard_normal((3, 21)) + 0.02 * rng.standard_normal((n, 21))
    ),
    "21 columns, small clusters": lambda rng, n: (
        rng.standard_normal((8, 21))[rng.integers(0, 8, n)]
        + 0.05 * rng.standard_normal((n, 3)) @ rng.standard_normal((3, 21))
    ),
    "43 columns": lambda rng, n: rng.standard_normal((n, 43)) * np.geomspace(1, 0.01, 43),
}
# Kernels are compiled for each number of columns, 10 s of it in a fresh checkout: two of them do for every day.
EVERY_FAMILY = [
    pytest.param(name, marks=pytest.mark.long if name.startswith(("one column", "six", "21", "43")) else ())
    for name in FAMILIES
]
