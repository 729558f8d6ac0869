"""Two-dimensional sets whose log density is known, to judge a generator against the truth.

| name | law | density |
| --- | --- | --- |
| moons | two half circles of radius 1, Gaussian noise 0.05 | integral along the curve |
| circles | circles of radius 0.5 and 1, noise 0.05 | closed form (Bessel I0) |
| rings | circles of radius 1, 2, 3, 4, noise 0.1 | closed form (Bessel I0) |
| spirals | two arms of 1.5 turns out to radius pi, noise 0.08 | integral along the curve |
| pinwheel | 5 Gaussian arms, rotated by an angle that grows with the radius | closed form |
| 8gaussians | 8 Gaussians of deviation 0.2 on a circle of radius 2 | closed form |
| checkerboard | uniform on 8 of the 16 squares of side 2 in [-4, 4]^2 | constant; -inf outside |
| wave | x given y is N(sin y, (0.2 + 0.1 y)^2), y uniform on [0, 3] | closed form; -inf outside |

All parts of a set have the same weight, and noise is isotropic. An integral along a curve is a sum over Gauss-Legendre
panels four noise widths long, 10 nodes each: a relative error below 1e-7. The pinwheel's rotation keeps the radius, so
it preserves volume and is undone exactly.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy  # its parts are imported when they are first used
from numpy.typing import NDArray

from sfg_dist.job.plan import DRAW_ROWS, Stream, random_generator

NAMES: tuple[str, ...] = ("moons", "circles", "rings", "spirals", "pinwheel", "8gaussians", "checkerboard", "wave")
DEFAULT_NUM_ROWS = 20_000

_Array = NDArray[np.float64]

_DENSITY_ROWS = 256  # rows at once: their distances to all centres stay in the cache

_MOON_NOISE = 0.05
_CIRCLES = {"circles": ((0.5, 1.0), 0.05), "rings": ((1.0, 2.0, 3.0, 4.0), 0.1)}
_SPIRAL_NOISE, _SPIRAL_ANGLE = 0.08, 3 * np.pi
_NUM_ARMS, _ARM_CENTRE, _ARM_STD, _ARM_TWIST = 5, np.array([1.0, 0.0]), np.array([0.3, 0.1]), 0.25
_NUM_GAUSSIANS, _GAUSSIAN_RADIUS, _GAUSSIAN_STD = 8, 2.0, 0.2
_BOARD_HALF, _SQUARE = 4.0, 2.0
_WAVE_END, _WAVE_STD, _WAVE_GROWTH = 3.0, 0.2, 0.1


def draw(name: str, num_rows: int, seed: int) -> _Array:
    """Draw rows of a toy set, float64 of shape (num_rows, 2); a row does not depend on how many are drawn.

    Examples:
        >>> draw("checkerboard", 3, seed=0).shape
        (3, 2)
    """
    rows = np.empty((num_rows, 2))
    for block, start in enumerate(range(0, num_rows, DRAW_ROWS)):
        random = random_generator(seed, Stream.TOY, block)
        part = random.random(DRAW_ROWS)
        uniform = random.random((DRAW_ROWS, 2))
        normal = random.standard_normal((DRAW_ROWS, 2))
        rows[start : start + DRAW_ROWS] = _shape_rows(name, part, uniform, normal)[: num_rows - start]
    return rows


def log_density(name: str, rows: _Array) -> _Array:
    """Exact log density of a toy set in nats, at rows of shape (num_rows, 2); -inf where the density is 0.

    Examples:
        >>> log_density("checkerboard", np.array([[1.0, 1.0], [9.0, 0.0]]))
        array([-3.4657359,       -inf])
    """
    rows = np.asarray(rows, dtype=np.float64)
    values = np.empty(len(rows))
    for start in range(0, len(rows), _DENSITY_ROWS):
        block = slice(start, start + _DENSITY_ROWS)
        if name in _CIRCLES:
            values[block] = _circles_log_density(rows[block], *_CIRCLES[name])
        elif name in _CLOSED_FORMS:
            values[block] = _CLOSED_FORMS[name](rows[block])
        else:
            values[block] = _mixture_log_density(rows[block], *_mixture(name))
    return values


def _shape_rows(name: str, part: _Array, uniform: _Array, normal: _Array) -> _Array:
    """Map uniform and normal numbers to rows of the set."""
    if name == "moons":
        return _moon((part < 0.5).astype(float), np.pi * uniform[:, 0]) + _MOON_NOISE * normal
    if name in _CIRCLES:
        radii, noise = _CIRCLES[name]
        radius = np.array(radii)[(part * len(radii)).astype(int)]
        return radius[:, None] * _direction(2 * np.pi * uniform[:, 0]) + noise * normal
    if name == "spirals":
        angle = _SPIRAL_ANGLE * np.sqrt(uniform[:, 0])
        return np.where(part < 0.5, 1.0, -1.0)[:, None] * _spiral(angle) + _SPIRAL_NOISE * normal
    if name == "pinwheel":
        before = _ARM_CENTRE + _ARM_STD * normal
        arm = np.floor(part * _NUM_ARMS)
        return _rotate(before, _twist(before) + 2 * np.pi * arm / _NUM_ARMS)
    if name == "8gaussians":
        angle = 2 * np.pi * np.floor(part * _NUM_GAUSSIANS) / _NUM_GAUSSIANS
        return _GAUSSIAN_RADIUS * _direction(angle) + _GAUSSIAN_STD * normal
    if name == "checkerboard":
        index = (part * 8).astype(int)
        row, column = index // 2, 2 * (index % 2) + (index // 2) % 2
        return _SQUARE * (np.stack([column, row], axis=1) + uniform) - _BOARD_HALF
    if name == "wave":
        given = _WAVE_END * uniform[:, 0]
        mean, std = wave_law(given)
        return np.stack([mean + std * normal[:, 0], given], axis=1)
    raise ValueError(f"unknown toy set {name!r}: expected one of {', '.join(NAMES)}")


def wave_law(given: _Array) -> tuple[_Array, _Array]:
    """Mean and standard deviation of the first column of "wave" given its second, each of the shape of ``given``."""
    return np.sin(given), _WAVE_STD + _WAVE_GROWTH * given


def _wave_log_density(rows: _Array) -> _Array:
    inside = (rows[:, 1] >= 0) & (rows[:, 1] <= _WAVE_END)
    mean, std = wave_law(np.where(inside, rows[:, 1], 0.0))
    log_p = -0.5 * ((rows[:, 0] - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi) * _WAVE_END)
    return np.where(inside, log_p, -np.inf)


def _direction(angle: _Array) -> _Array:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _moon(which: _Array, angle: _Array) -> _Array:
    """The upper moon (0) or the lower one (1), which is the upper one turned about (0.5, 0.25)."""
    upper = _direction(angle)
    return np.where(which[:, None] == 0, upper, np.array([1.0, 0.5]) - upper)


def _spiral(angle: _Array) -> _Array:
    return angle[:, None] / 3 * _direction(angle)


def _rotate(rows: _Array, angle: _Array) -> _Array:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * rows[:, 0] - sin * rows[:, 1], sin * rows[:, 0] + cos * rows[:, 1]], axis=1)


def _twist(rows: _Array) -> _Array:
    """The angle by which the pinwheel turns a row: a function of its radius alone."""
    return _ARM_TWIST * np.exp(np.hypot(rows[:, 0], rows[:, 1]).clip(max=50))


def _circles_log_density(rows: _Array, radii: tuple[float, ...], noise: float) -> _Array:
    # p(r) = mean_R exp(-(r^2 + R^2) / 2 s^2) I0(r R / s^2) / (2 pi s^2), I0 scaled by exp(-r R / s^2)
    radius, circle = np.hypot(rows[:, 0], rows[:, 1])[:, None], np.array(radii)
    terms = np.log(scipy.special.ive(0, radius * circle / noise**2)) - (radius - circle) ** 2 / (2 * noise**2)
    total: _Array = scipy.special.logsumexp(terms, axis=1)
    return total - np.log(len(radii) * 2 * np.pi * noise**2)


def _pinwheel_log_density(rows: _Array) -> _Array:
    terms = []
    for arm in range(_NUM_ARMS):
        before = _rotate(rows, -_twist(rows) - 2 * np.pi * arm / _NUM_ARMS)
        terms.append(-0.5 * np.sum(((before - _ARM_CENTRE) / _ARM_STD) ** 2, axis=1))
    total: _Array = scipy.special.logsumexp(np.stack(terms), axis=0)
    return total - np.log(_NUM_ARMS * 2 * np.pi * _ARM_STD.prod())


def _checkerboard_log_density(rows: _Array) -> _Array:
    square = np.floor((rows + _BOARD_HALF) / _SQUARE)
    inside = np.all((rows >= -_BOARD_HALF) & (rows < _BOARD_HALF), axis=1)
    return np.where(inside & (square.sum(axis=1) % 2 == 0), -np.log(8 * _SQUARE**2), -np.inf)


_CLOSED_FORMS = {
    "pinwheel": _pinwheel_log_density, "checkerboard": _checkerboard_log_density, "wave": _wave_log_density
}  # fmt: skip


def _mixture_log_density(rows: _Array, centres: _Array, log_weights: _Array, noise: float) -> _Array:
    # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and the sum of exponentials in place: the spirals have 1,000 centres
    terms = rows @ (centres.T / noise**2)
    terms += log_weights - np.sum(centres**2, axis=1) / (2 * noise**2)
    largest = terms.max(axis=1)
    terms -= largest[:, None]
    total = largest + np.log(np.exp(terms, out=terms).sum(axis=1))
    return total - np.sum(rows**2, axis=1) / (2 * noise**2) - np.log(2 * np.pi * noise**2)


@lru_cache(maxsize=len(NAMES))
def _mixture(name: str) -> tuple[_Array, _Array, float]:
    """Centres, log weights and noise of a set that is a mixture, or whose curve is summed as one."""
    if name == "8gaussians":
        angle = 2 * np.pi * np.arange(_NUM_GAUSSIANS) / _NUM_GAUSSIANS
        weights = np.full(_NUM_GAUSSIANS, 1 / _NUM_GAUSSIANS)
        return _GAUSSIAN_RADIUS * _direction(angle), np.log(weights), _GAUSSIAN_STD
    if name == "moons":
        edges = np.linspace(0, np.pi, int(np.pi / (4 * _MOON_NOISE)) + 2)
        angle, length = _panel_nodes(edges)
        centres = np.concatenate([_moon(np.full(len(angle), which), angle) for which in (0.0, 1.0)])
        return centres, np.log(np.tile(length / (2 * np.pi), 2)), _MOON_NOISE
    if name == "spirals":
        # arc length of (a / 3)(cos a, sin a) from 0 to a, turned round by interpolation to space the panels
        fine = np.linspace(0, _SPIRAL_ANGLE, 20_000)
        arc = (fine * np.sqrt(1 + fine**2) + np.arcsinh(fine)) / 6
        edges = np.interp(np.linspace(0, arc[-1], int(arc[-1] / (4 * _SPIRAL_NOISE)) + 2), arc, fine)
        angle, length = _panel_nodes(edges)
        # the angle is A sqrt(u), u uniform, so its density is 2 a / A^2; half the rows lie on either arm
        log_weights = np.log(length * angle / _SPIRAL_ANGLE**2)
        return np.concatenate([_spiral(angle), -_spiral(angle)]), np.tile(log_weights, 2), _SPIRAL_NOISE
    raise ValueError(f"unknown toy set {name!r}: expected one of {', '.join(NAMES)}")


def _panel_nodes(edges: _Array) -> tuple[_Array, _Array]:
    """Gauss-Legendre nodes and weights on the panels between the edges, 10 to a panel."""
    nodes, weights = np.polynomial.legendre.leggauss(10)
    half = np.diff(edges)[:, None] / 2
    return ((edges[:-1, None] + half) + half * nodes).ravel(), (half * weights).ravel()
