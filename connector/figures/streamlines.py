"""Evenly spaced streamlines of a flow on a grid, as matplotlib's ``streamplot`` draws them, in a fraction of its time.

A line is followed both ways from a start, by Heun's method with steps that adapt to its error. It ends where it leaves the grid,
where it comes to a place without a flow, or to a cell of a coarser lattice that a line has passed. Starts are the cells that
no line has passed, the outermost first. Single numbers are taken from lists: those of masked arrays cost most of
``streamplot``'s time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

_CELLS = 30  # of the lattice along each axis, at density 1
_ERROR = 0.003  # of a step, of the axes' length
_LONGEST_STEP = 0.1  # of the axes' length, as are the lengths of lines
_SHORTEST, _LONGEST = 0.1, 2.0  # both ways together, and each way


def streamlines(x: np.ndarray, y: np.ndarray, flow: np.ndarray, density: float = 1.0) -> list[np.ndarray]:
    """Lines (S, 2), in units of x and y.

    Args:
        x (X,), y (Y,): the grid, evenly spaced.
        flow: (Y, X, 2); NaN where no line is to go.
        density: of the lines, 1 for some 30 across.
    """
    origin, step = np.array([x[0], y[0]]), np.array([x[1] - x[0], y[1] - y[0]])
    lines = _Lines(flow / step, int(_CELLS * density))
    found = (lines.through(cell) for cell in _inwards(lines.cells, lines.cells))
    return [origin + step * np.array(line) for line in found if line is not None]


def _inwards(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Cells of a lattice, in a spiral from the corner inwards."""
    at, low, high, turn = [0, 0], [0, 1], [width - 1, height - 1], 0
    for _ in range(width * height):
        yield at[0], at[1]
        axis, upwards = turn % 2, turn % 4 < 2
        at[axis] += 1 if upwards else -1
        if upwards and at[axis] >= high[axis]:
            high[axis], turn = high[axis] - 1, turn + 1
        elif not upwards and at[axis] <= low[axis]:
            low[axis], turn = low[axis] + 1, turn + 1


class _NoFlow(Exception):
    pass


class _Lines:
    """Lines of a flow (Y, X, 2) in steps of the grid per time, followed one after the other on a lattice of cells."""

    def __init__(self, flow: np.ndarray, cells: int):
        self.last, self.cells = (flow.shape[1] - 1, flow.shape[0] - 1), cells
        speed = np.sqrt(np.square(flow / self.last).sum(-1, keepdims=True))
        self.values = np.concatenate([flow, speed], axis=-1).tolist()
        self.scale = tuple((cells - 1) / last for last in self.last)  # from the grid to the lattice
        self.back = tuple(1 / scale for scale in self.scale)
        self.passed: set[tuple[int, int]] = set()
        self.cell: tuple[int, int] | None = None
        self.own: list[tuple[int, int]] = []

    def through(self, cell: tuple[int, int]) -> list[tuple[float, float]] | None:
        """The line through a cell that no line has passed; None for one too short, or where one has."""
        start = cell[0] * self.back[0], cell[1] * self.back[1]
        # Rounding may put the last cells' starts outside, as it does for streamplot.
        if cell in self.passed or not self._inside(*start):
            return None
        self.own = []
        self._enter(start)
        before, back = self._followed(start, -1)
        self.cell = cell
        after, forth = self._followed(start, 1)
        if back + forth > _SHORTEST:
            return before[::-1] + after[1:]
        self.passed.difference_update(self.own)
        return None

    def _inside(self, x: float, y: float) -> bool:
        return 0 <= x <= self.last[0] and 0 <= y <= self.last[1]

    def _enter(self, at: tuple[float, float]) -> bool:
        """Whether the line may go to a point: within the grid, in its present cell or in one that none has passed."""
        cell = round(at[0] * self.scale[0]), round(at[1] * self.scale[1])
        if cell == self.cell:
            return self._inside(*at)
        if not self._inside(*at) or cell in self.passed:
            return False
        self.passed.add(cell)
        self.own.append(cell)
        self.cell = cell
        return True

    def _direction(self, x: float, y: float, sign: int) -> tuple[float, float]:
        """Along the flow, interpolated, in steps of the grid per length of the axes."""
        column, row = int(x), int(y)
        right, above = min(column + 1, self.last[0]), min(row + 1, self.last[1])
        x, y, lower, upper = x - column, y - row, self.values[row], self.values[above]
        corners = zip(lower[column], lower[right], upper[column], upper[right])
        u, v, speed = ((a * (1 - x) + b * x) * (1 - y) + (c * (1 - x) + d * x) * y for a, b, c, d in corners)
        if not speed > 0:
            raise _NoFlow
        return sign * u / speed, sign * v / speed

    def _followed(self, start: tuple[float, float], sign: int) -> tuple[list[tuple[float, float]], float]:
        """Points from a start on, with the flow (sign 1) or against it (-1), and the length."""
        longest = min(1 / self.cells, _LONGEST_STEP)
        (x, y), step, length, points = start, longest, 0.0, [start]
        while True:
            try:
                first = self._direction(x, y, sign)
                ahead = x + step * first[0], y + step * first[1]
                if not self._inside(*ahead):
                    to_edge = self._to_edge(x, y, first)
                    points.append((x + to_edge * first[0], y + to_edge * first[1]))
                    return points, length + to_edge
                second = self._direction(*ahead, sign)
            except _NoFlow:
                return points, length
            move = [step * 0.5 * (a + b) for a, b in zip(first, second)]
            error = math.hypot(*((m - step * a) / last for m, a, last in zip(move, first, self.last)))
            if error < _ERROR:
                x, y = x + move[0], y + move[1]
                if not self._enter((x, y)) or length + step > _LONGEST:
                    return points, length
                length += step
                points.append((x, y))
            step = min(longest, 0.85 * step * (_ERROR / error) ** 0.5) if error else longest

    def _to_edge(self, x: float, y: float, along: tuple[float, float]) -> float:
        """Length from a point to the edge of the grid."""
        ways = [
            at / -slope if slope < 0 else (last - at) / slope
            for at, slope, last in zip((x, y), along, self.last)
            if slope
        ]
        return min(ways)
