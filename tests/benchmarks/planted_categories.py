"""A table whose categories must agree: TRAIN.parquet and TEST.parquet of 12,000 and 4,000 rows.

    python tests/benchmarks/planted_categories.py TRAIN.parquet TEST.parquet

``city``: 400, the r-th commonest with a share like 1 / r. ``region``: 12, a city's own, or in a fiftieth of the rows
the next one. ``product``: 40 with a rare tail. ``code``: 60, determined by product and region together, by none of them
alone. ``paid``: a truth value, by the code in four rows of five. ``price`` and ``weight``: numbers that go by product
and region.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd

TRAIN_ROWS, TEST_ROWS = 12_000, 4_000
CITIES, REGIONS, PRODUCTS, CODES = 400, 12, 40, 60


def planted(num_rows: int) -> pd.DataFrame:
    """Rows, which are the same each time."""
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, CITIES + 1)
    city = random.choice(CITIES, num_rows, p=shares / shares.sum())
    own = random.integers(0, REGIONS, CITIES)
    region = (own[city] + (random.random(num_rows) < 0.02)) % REGIONS
    shares = 0.9 ** np.arange(PRODUCTS)
    product = (random.choice(PRODUCTS, num_rows, p=shares / shares.sum()) + 3 * region) % PRODUCTS
    code = random.integers(0, CODES, (PRODUCTS, REGIONS))[product, region]
    paid = (code % 2 == 0) ^ (random.random(num_rows) < 0.2)
    price = np.exp(random.normal(2, 1, PRODUCTS)[product] + 0.3 * random.standard_normal(num_rows))
    weight = random.normal(0, 2, REGIONS)[region] + 0.5 * np.log(price) + random.standard_normal(num_rows)
    names = {"city": city, "region": region, "product": product, "code": code}
    texts = {name: [f"{name}{value}" for value in column] for name, column in names.items()}
    return pd.DataFrame({**texts, "paid": paid, "price": price, "weight": weight})


if __name__ == "__main__":
    table = planted(TRAIN_ROWS + TEST_ROWS)
    table.iloc[:TRAIN_ROWS].to_parquet(sys.argv[1])
    table.iloc[TRAIN_ROWS:].to_parquet(sys.argv[2])
