"""All fixed points of many vector fields in the region that was visited, counted together.

The fields are dz/dt = -z + B(z) c with one set of smooth functions B and many coefficients c: draws from a posterior. B is
evaluated once on a grid of cells (Kuhn's simplices in each), which all fields share.

1. Where a component of the field has one sign on a cell's corners by more than its curvature there can undo, the cell has
   no fixed point. The curvature is that of second differences on the grid, times ``_SAFETY``.
2. Newton's method starts from the other cells' centres and from the zeros of the piecewise linear field.
3. Check: the indices of the points found, sign det(-J), add up to the degree of the field on the region's cells, which the
   piecewise linear field gives. Where they do not, Newton's method starts again from a finer lattice in those cells.

This counts, it does not prove: two points closer than a cell that annihilate each other escape steps 2 and 3 together. The
share of fields for which a count is wrong is measured in ``tests/analysis/test_fixed_points.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from connector.errors import require

_CELLS = {1: 256, 2: 40, 3: 16}  # along each axis of the region's box
_SAFETY = 2.0
_REACH = 0.15  # of the states' rms distance from their mean: how far the visited region goes beyond them
_MERGED = 1e-3  # of the same: points nearer than that are one
_NEWTON_STEPS, _CONVERGED = 12, 1e-9
_CHUNK = 20_000  # points at which B is evaluated at a time

Basis = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FixedPoints:
    """Of n fields.

    Attributes:
        points: (F, R) of all fields together; field: (F,) the field that each is of; eigenvalues: (F, R) complex, of the
            Jacobian there, units 1 / tau.
        checked: (n,) whether the indices of a field's points add up to its degree on the region.
    """

    points: Tensor
    field: Tensor
    eigenvalues: Tensor
    checked: Tensor

    @property
    def stable(self) -> Tensor:
        """(F,) whether nearby states converge."""
        return (self.eigenvalues.real < 0).all(1)

    def counts(self, stable: bool = True) -> Tensor:
        """(n,) number of stable fixed points, or of all."""
        of = self.field[self.stable] if stable else self.field
        return torch.bincount(of, minlength=len(self.checked))


@dataclass(frozen=True)
class Region:
    """Cells of a grid that states have visited or come near.

    Attributes:
        low, step: (R,) corner of the box and size of a cell; shape: cells along each axis.
        inside: ``shape`` boolean, the cells that belong to it. reach: how near a point must be to a visited state.
        states: (T, R) visited; scale: their rms distance from their mean.
    """

    low: Tensor
    step: Tensor
    shape: tuple[int, ...]
    inside: Tensor
    reach: float
    states: Tensor
    scale: float

    @staticmethod
    def of(states: Tensor, cells: int | None = None) -> Region:
        """Around visited states (T, R), R of 1 to 3; raises UserError for others."""
        rank = states.shape[-1]
        require(states.ndim == 2 and rank in _CELLS, "visited states (T, R) with R of 1 to 3", tuple(states.shape))
        require(bool(torch.isfinite(states).all()), "finite states", "NaN or infinite ones")
        states, count = states.double(), cells or _CELLS[rank]
        scale = float((states - states.mean(0)).square().sum(1).mean().sqrt().clamp_min(1e-12))
        reach = _REACH * scale
        low, high = states.min(0).values - reach, states.max(0).values + reach
        step, shape = (high - low) / count, (count,) * rank
        centres = low + step * (torch.cartesian_prod(*[torch.arange(count).double()] * rank).view(-1, rank) + 0.5)
        near, _ = cKDTree(states.numpy()).query(centres.numpy(), distance_upper_bound=reach + float(step.norm()) / 2)
        return Region(low, step, shape, torch.from_numpy(near).isfinite().view(shape), reach, states, scale)

    def nodes(self) -> Tensor:
        """Corners of all cells, ((G + 1)^R, R)."""
        axes = [torch.arange(n + 1).double() for n in self.shape]
        return self.low + self.step * torch.cartesian_prod(*axes).view(-1, len(self.shape))

    def holds(self, points: Tensor) -> Tensor:
        """(P,) whether the cell that a point lies in belongs to the region."""
        at = ((points - self.low) / self.step).floor().long()
        within = ((at >= 0) & (at < torch.tensor(self.shape))).all(1)
        at = at.clamp_min(0).minimum(torch.tensor(self.shape) - 1)
        return within & self.inside[tuple(at.T)]


def count_fixed_points(basis: Basis, coefficients: Tensor, region: Region) -> FixedPoints:
    """Fixed points in ``region`` of the fields -z + B(z) c.

    Args:
        basis: (T, R) -> B (T, p) float64, smooth.
        coefficients: (n, p, R), or (p, R) of one field.
    """
    coefficients = coefficients if coefficients.ndim == 3 else coefficients[None]
    nodes, rank = region.nodes(), len(region.shape)
    grid = tuple(n + 1 for n in region.shape)
    values = torch.cat([basis(part) for part in nodes.split(_CHUNK)])
    field = (values @ coefficients - nodes).view(len(coefficients), *grid, rank)
    which, cell = _open_cells(field, region)
    starts, degree = _linear_zeros(field, region, which, cell)
    centres = region.low + region.step * (cell + 0.5)
    of = torch.cat([which, starts[0]])
    found, number = _newton(basis, coefficients, torch.cat([centres, starts[1]]), of, region)
    points = _merged(found, number, region)
    for finer in (3, 5):
        result = _with_indices(basis, coefficients, *points, region)
        wrong = (result.index_sum(len(coefficients)) != degree).nonzero()[:, 0]
        if not len(wrong):
            break
        again = torch.isin(which, wrong)
        lattice = torch.tensor(list(product(range(finer), repeat=rank))).double().add_(0.5) / finer
        more = (region.low + region.step * (cell[again][:, None] + lattice)).flatten(0, 1)
        extra = _newton(basis, coefficients, more, which[again].repeat_interleave(len(lattice)), region)
        points = _merged(torch.cat([points[0], extra[0]]), torch.cat([points[1], extra[1]]), region)
    result = _with_indices(basis, coefficients, *points, region)
    return FixedPoints(result.points, result.number, result.eigenvalues, result.index_sum(len(coefficients)) == degree)


def _corners(field: Tensor, rank: int) -> list[Tensor]:
    """Values at each of the 2^R corners of the cells, (n, *shape, R) each."""
    found = []
    for corner in product((0, 1), repeat=rank):
        at = tuple(slice(1, None) if c else slice(None, -1) for c in corner)
        found.append(field[(slice(None), *at)])
    return found


def _open_cells(field: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """Fields (C,) and cells (C, R) of the region that may hold a fixed point."""
    rank = len(region.shape)
    # a multilinear function of the corners errs by at most sum_d |second difference| / 8
    slack = torch.zeros_like(field)
    for d in range(1, rank + 1):
        if field.shape[d] > 2:
            second = field.diff(dim=d).diff(dim=d).abs()
            ends = second.narrow(d, 0, 1), second.narrow(d, second.shape[d] - 1, 1)
            slack += torch.cat([ends[0], second, ends[1]], dim=d)
    corners, bounds = _corners(field, rank), _corners(slack, rank)
    margin = _SAFETY / 8 * torch.stack(bounds).amax(0)
    values = torch.stack(corners)
    maybe = ((values.amin(0) <= margin) & (values.amax(0) >= -margin)).all(-1) & region.inside
    at = maybe.nonzero()
    return at[:, 0], at[:, 1:].double()


def _linear_zeros(field: Tensor, region: Region, which: Tensor, cell: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Zeros of the piecewise linear field in the open cells, (their fields (Z,), points (Z, R)), and the degree (n,): the
    sum of their signs det(-J)."""
    rank, n = len(region.shape), len(field)
    number, points, degree = [], [], torch.zeros(n, dtype=torch.int64)
    base = cell.long()
    for order in permutations(range(rank)):
        corner = torch.zeros(rank, dtype=torch.int64)
        corners = [corner.clone()]
        for axis in order:
            corner[axis] = 1
            corners.append(corner.clone())
        offsets = torch.stack(corners)  # (R + 1, R) of Kuhn's simplex
        values = torch.stack([field[(which, *(base + o).T)] for o in offsets], dim=1)  # (C, R + 1, R)
        edges = (values[:, 1:] - values[:, :1]).transpose(1, 2)  # field = values_0 + edges @ barycentric
        determinant = torch.linalg.det(edges)
        solvable = determinant.abs() > 1e-300
        weights = torch.zeros(len(base), rank, dtype=torch.float64)
        weights[solvable] = torch.linalg.solve(edges[solvable], -values[solvable, 0])
        inside = solvable & (weights >= 0).all(1) & (weights.sum(1) <= 1)
        sides = (offsets[1:] - offsets[:1]).double()  # (R, R) rows: edges of the simplex, in cells
        orientation = torch.sign(torch.linalg.det(sides))
        sign = (torch.sign(determinant) * orientation * (-1) ** rank)[inside].long()
        degree.index_add_(0, which[inside], sign)
        number.append(which[inside])
        points.append(region.low + region.step * (cell[inside] + weights[inside] @ sides))
    return (torch.cat(number), torch.cat(points)), degree


def _values(basis: Basis, coefficients: Tensor, z: Tensor, of: Tensor) -> Tensor:
    """-z + B(z) c of the field ``of`` (P,) each point belongs to."""
    parts = zip(z.split(_CHUNK), of.split(_CHUNK))
    return torch.cat([torch.einsum("tp,tpr->tr", basis(at), coefficients[k]) - at for at, k in parts])


def _jacobians(basis: Basis, coefficients: Tensor, z: Tensor, of: Tensor, h: float) -> Tensor:
    """(P, R, R) by central differences."""
    columns = []
    for d in range(z.shape[1]):
        move = torch.zeros(z.shape[1], dtype=torch.float64)
        move[d] = h
        ahead, behind = (_values(basis, coefficients, z + s * move, of) for s in (1, -1))
        columns.append((ahead - behind) / (2 * h))
    return torch.stack(columns, dim=-1)


def _newton(basis: Basis, coefficients: Tensor, z: Tensor, of: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """Where Newton's method from z (P, R) ends in the region, and the fields these points belong to."""
    z, moving, done = z.clone(), torch.arange(len(z)), torch.zeros(len(z), dtype=torch.bool)
    longest = 4 * float(region.step.norm())
    for _ in range(_NEWTON_STEPS):
        if not len(moving):
            break
        at = z[moving]
        value = _values(basis, coefficients, at, of[moving])
        slope = _jacobians(basis, coefficients, at, of[moving], 1e-5 * region.scale)
        slope = slope + 1e-12 * torch.eye(z.shape[1]).double()
        step, _ = torch.linalg.solve_ex(slope, -value)
        length = step.norm(dim=1, keepdim=True)
        step = torch.where(length.isfinite(), step, torch.zeros_like(step))
        z[moving] = at + step * (longest / length.clamp_min(1e-300)).clamp(max=1.0).nan_to_num(0.0)
        settled = length[:, 0] < _CONVERGED * region.scale
        done[moving[settled]] = True
        near = (z[moving] - region.low >= -10 * region.step).all(1)
        near &= (z[moving] - region.low <= region.step * (torch.tensor(region.shape) + 10)).all(1)
        moving = moving[~settled & near & length[:, 0].isfinite()]
    keep = done & region.holds(z)
    return z[keep], of[keep]


def _merged(points: Tensor, number: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """Each point once."""
    kept: list[int] = []
    by_field: dict[int, list[int]] = {}
    for i, k in enumerate(number.tolist()):
        others = by_field.setdefault(k, [])
        if not others or bool(((points[others] - points[i]).norm(dim=1) > _MERGED * region.scale).all()):
            others.append(i)
            kept.append(i)
    return points[kept], number[kept]


@dataclass(frozen=True)
class _Indexed:
    points: Tensor
    number: Tensor
    eigenvalues: Tensor
    index: Tensor

    def index_sum(self, n: int) -> Tensor:
        return torch.zeros(n, dtype=torch.int64).index_add_(0, self.number, self.index)


def _with_indices(basis: Basis, coefficients: Tensor, points: Tensor, number: Tensor, region: Region) -> _Indexed:
    slope = _jacobians(basis, coefficients, points, number, 1e-5 * region.scale)
    index = torch.sign(torch.linalg.det(-slope)).long()
    return _Indexed(points, number, torch.linalg.eigvals(slope), index)
