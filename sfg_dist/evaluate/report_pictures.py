"""The pictures of the report: rows of the data beside samples, what differs most, and how the fit went."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfg_dist.evaluate import pictures
from sfg_dist.evaluate.compared_rows import Rows, checked_rows, subset
from sfg_dist.evaluate.judgement import JudgedTables
from sfg_dist.evaluate.pictures import Picture
from sfg_dist.evaluate.plain_figures import shown_number
from sfg_dist.evaluate.shown_columns import SHOWN_SHARE, ShownColumn, short_name, shown_columns
from sfg_dist.job.errors import DataError
from sfg_dist.job.plan import Stream, random_generator
from sfg_dist.job.words import duration

HISTOGRAM_MAX_ROWS = 20_000
NUM_WORST_SHOWN = 3
_PICTURES_INDEX = 100  # its own place in the EVALUATE stream, past the metrics

LogDensity = Callable[[NDArray[np.float64]], ArrayLike]


@dataclass(frozen=True, eq=False)
class Flow:
    """What is known of a flow in the plane."""

    # paths of the flow for two columns, latents first, shape (num_times, num_rows, 2)
    trajectories: ArrayLike
    log_beta_sq: ArrayLike  # log of the noise variance at each of those times, shape (num_times,)


class ReportPictures:
    """Random subsets of the tables, and the pictures of them.

    Args:
        tables: what is judged.
        labels: labels of the pairs, shape (num_labels, num_columns), or None.

    Raises:
        DataError: a table with infinity, or of another width than there are columns.
    """

    def __init__(self, tables: JudgedTables, labels: ArrayLike | None = None) -> None:
        self._columns = tables.columns
        self._generator = random_generator(0, Stream.EVALUATE, _PICTURES_INDEX)
        self._held_out = self._shown("held-out rows", tables.held_out)
        self._samples = self._shown("samples", tables.samples)
        self._labels = None if labels is None else self._shown("labels", labels)
        self._by_column = shown_columns(self._columns, self._held_out, self._samples)

    def _shown(self, name: str, table: ArrayLike) -> Rows:
        rows = np.asarray(table, dtype=np.float64)
        checked_rows(name, np.where(np.isnan(rows), 0.0, rows), dim=len(self._columns), min_rows=1)
        return subset(rows, HISTOGRAM_MAX_ROWS, self._generator)

    @property
    def _is_plain(self) -> bool:
        """Whether all columns are numbers, and no value is missing."""
        tables = [self._held_out, self._samples, *([] if self._labels is None else [self._labels])]
        are_numbers = all(column.kind in ("number", "integer") for column in self._columns)
        return are_numbers and not any(np.isnan(table).any() for table in tables)

    def worst_columns(self, records: Sequence[Mapping[str, Any]]) -> list[Picture]:
        """The first columns of ``columns`` in metrics.json, one picture each."""
        found = []
        for record in self._known(records, "column"):
            column = self._of(record["column"])
            figure = pictures.new_figure(pictures.SMALL_WIDTH, 2.5)
            pictures.draw_column(figure.subplots(), column, short_name(column.name))
            pictures.add_legend(figure, ("held-out data", pictures.DATA_COLOR), ("samples", pictures.SAMPLES_COLOR))
            caption = f"{column.name}: {shown_number(record['score'])}, real rows {shown_number(record['floor'])}"
            found.append(pictures.picture(figure, f"Histogram of {column.name}, data against samples", caption))
        return found

    def worst_pairs(self, records: Sequence[Mapping[str, Any]]) -> list[Picture]:
        """The first pairs of ``pairs`` in metrics.json, one picture each."""
        from sfg_dist.evaluate import clouds

        found = []
        for record in self._known([record for record in records if len(record["columns"]) == 2], "columns"):
            first, second = (self._of(name) for name in record["columns"])
            names = f"{first.name} and {second.name}"
            figure = clouds.pair_panels(first, second, generator=self._generator)
            caption = f"{names}: {shown_number(record['score'])}, real rows {shown_number(record['floor'])}"
            found.append(pictures.picture(figure, f"Points of {names}, data above and samples below", caption))
        return found

    def _known(self, records: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
        """The first records whose columns are there."""
        names = {column.name for column in self._columns}
        wanted = [({record[key]} if isinstance(record[key], str) else set(record[key]), record) for record in records]
        return [record for some, record in wanted if some <= names][:NUM_WORST_SHOWN]

    def _of(self, name: str) -> ShownColumn:
        return next(column for column in self._by_column if column.name == name)

    def clouds(self, log_density: LogDensity | None = None, flow: Flow | None = None) -> Iterator[Picture]:
        """The pictures of data and samples that suit the table, the most telling first.

        Args:
            log_density: the true log density of the plane, (num_rows, 2) to (num_rows,) in nats, where it is known.
            flow: its paths, for a table of two columns.

        Raises:
            DataError: trajectories of another shape than (num_times, num_rows, 2) with one log_beta_sq a time.
        """
        from sfg_dist.evaluate import clouds

        names, generator = [column.name for column in self._columns], self._generator
        held_out, samples = self._held_out, self._samples
        if self._is_plain and len(names) == 2:
            yield pictures.picture(
                clouds.density_panels(names, held_out, self._labels, samples, log_density, generator=generator),
                "Densities in the plane: data, labels, samples and, where known, the truth",
                "Densities in the plane on one colour scale, with as many rows in each panel.",
            )
            if flow is not None:
                yield _trajectory_picture(flow, names)
        if self._is_plain and clouds.is_color_table(names, held_out):
            yield pictures.picture(
                clouds.color_clouds(held_out, samples, generator=generator),
                "Colours of the data and of the samples as points and as swatches",
                "Each row is drawn in its own colour: two planes of the colour cube, and 400 random rows by lightness.",
            )
        shape = clouds.patch_shape(names) if self._is_plain else None
        if shape is not None:
            yield pictures.picture(
                clouds.patch_mosaic(shape, held_out, samples, generator=generator),
                "Random rows drawn as small images, data beside samples",
                f"Random rows, drawn as images of {shape[0]} by {shape[1]} pixels on the grey scale of the data.",
            )
        yield self._marginals()
        if len(names) > 1:
            yield self._pairs()

    def _marginals(self) -> Picture:
        dim, most = len(self._columns), pictures.MAX_MARGINALS
        has_bars = any(column.bars is not None for column in self._by_column)
        bars = ", with a bar for each category, the most frequent first" if has_bars else ""
        gaps = any(max(column.missing) > 0 for column in self._by_column)
        missing = " Missing values are left out: their shares in the data and in the samples are said." if gaps else ""
        more = f" Only the first {most} of {dim} columns are shown." if dim > most else ""
        return pictures.picture(
            pictures.marginals(self._by_column),
            "Histograms of the columns, data against samples",
            f"The histogram of each column{bars}. The axes show {100 * SHOWN_SHARE:.0f} % of the data.{missing}{more}",
        )

    def _pairs(self) -> Picture:
        from sfg_dist.evaluate import clouds

        dim, shown = len(self._columns), clouds.pair_columns(self._columns, self._held_out)
        which = f" Shown are the {len(shown)} of {dim} that go together most." if len(shown) < dim else ""
        return pictures.picture(
            clouds.pair_plot([self._by_column[place] for place in shown], generator=self._generator),
            "Pairs of columns: data below the diagonal, samples above",
            f"Pairs of columns: data below the diagonal, samples above. Good samples make it symmetric.{which}",
        )


def _trajectory_picture(flow: Flow, columns: Sequence[str]) -> Picture:
    from sfg_dist.evaluate import clouds

    trajectories, log_beta_sq = (np.asarray(each, dtype=np.float64) for each in (flow.trajectories, flow.log_beta_sq))
    if trajectories.ndim != 3 or trajectories.shape[2] != 2 or log_beta_sq.shape != (len(trajectories),):
        raise DataError(
            "trajectories: expected shape (num_times, num_rows, 2) with one log_beta_sq for each time, found "
            f"{trajectories.shape} and {log_beta_sq.shape}"
        )
    if not (np.isfinite(trajectories).all() and np.isfinite(log_beta_sq).all()):
        raise DataError("trajectories: expected finite numbers, found NaN or infinity")
    return pictures.picture(
        clouds.trajectory_plot(columns, trajectories, log_beta_sq),
        "Paths of the flow from latents to labels, and snapshots as the noise falls",
        "The probability flow leads from noise to data. β is the standard deviation of the noise.",
    )


def fit_pictures(history: Sequence[Mapping[str, Any]], time_s: Mapping[str, float]) -> Iterator[Picture]:
    """The curves of the losses, and the time of each stage; what is empty is left out."""
    losses = pictures.loss_curve(history)
    if losses is not None:
        yield pictures.picture(
            losses,
            "Training and validation loss by epoch, logarithmic scale",
            "The loss of the fit, in transformed coordinates. A validation loss that rises while the training loss "
            "falls is overfitting.",
        )
    if time_s:
        total = duration(sum(time_s.values()))
        yield pictures.picture(
            pictures.stage_times(time_s),
            "Bars of the seconds that each stage took",
            f"The wall-clock time of each stage; {total} in all.",
        )
