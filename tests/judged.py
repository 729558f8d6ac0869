"""Small tables for tests of judgements."""

import numpy as np

from sfg_dist.evaluate.judgement import JudgedColumn, JudgedTables

COLUMNS = (
    JudgedColumn("size", "number"),
    JudgedColumn("weight", "number"),
    JudgedColumn("count", "integer"),
    JudgedColumn("color", "category", ("red", "green", "blue", "grey")),
    JudgedColumn("sold", "boolean", ("no", "yes")),
)


def rows(num_rows, seed, *, gaps=0.0):
    """Rows of a law with dependent columns, shape (num_rows, 5)."""
    generator = np.random.default_rng(seed)
    size = generator.standard_normal(num_rows)
    weight = size**2 + 0.1 * generator.standard_normal(num_rows)
    count = np.floor(3 * np.abs(size + 0.1 * generator.standard_normal(num_rows)))
    color = np.clip(np.floor(size + 2), 0, 3)
    sold = generator.random(num_rows) < 1 / (1 + np.exp(-4 * size))
    table = np.stack([size, weight, count, color, sold], axis=1)
    table[generator.random(table.shape) < gaps] = np.nan
    return table


def tables(num_rows=400, *, samples=None, gaps=0.0, target="sold", **changed):
    """Three tables of the law."""
    given = {
        "columns": COLUMNS,
        "samples": rows(num_rows, 1, gaps=gaps) if samples is None else samples,
        "held_out": rows(num_rows, 2, gaps=gaps),
        "train": rows(num_rows, 3, gaps=gaps),
        "target": target,
    }
    return JudgedTables(**(given | changed))
