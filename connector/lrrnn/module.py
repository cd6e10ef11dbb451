"""The low-rank recurrent network as a trainable module; equation (1) itself stands in :mod:`connector.dynamics`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from connector.dynamics import Network
from connector.dynamics import activation as activation_named
from connector.errors import UserError
from connector.types import Loadings


class LowRankRNN(nn.Module):
    """A low-rank RNN whose loadings and output weights are parameters.

    Every method goes through :class:`connector.dynamics.Network` holding the live parameters, so gradients flow
    and equation (1) is written once.

    Args:
        n_units: K, number of units of the latent dynamics.
        rank: R, number of latent dimensions; any positive number.
        n_inputs: U, external input channels; 0 for none.
        has_bias: whether units have a bias d.
        alpha: Euler step in units of the time constant, dt / tau, in (0, 1].
        activation: tanh, relu, softplus or sigmoid.
        init_std: standard deviation of the normal start of all parameters (the global random state is used, as
            for every module); 2 is the value of LINT.

    Attributes:
        m: (K, R); n: (K, R); b: (K, U) or None; d: (K,) or None: the trainable parameters.

    Raises:
        UserError: invalid sizes, step or activation.
    """

    def __init__(
        self,
        n_units: int,
        rank: int,
        n_inputs: int = 0,
        has_bias: bool = False,
        alpha: float = 0.1,
        activation: str = "tanh",
        init_std: float = 1.0,
    ):
        super().__init__()
        if n_units < 1 or rank < 1 or n_inputs < 0:
            raise UserError("at least one unit and rank 1", f"{n_units} units, rank {rank}, {n_inputs} inputs")
        if not 0 < alpha <= 1:
            raise UserError("alpha = dt / tau in (0, 1]", str(alpha))
        activation_named(activation)
        self.alpha, self.activation = float(alpha), activation
        self.m = nn.Parameter(init_std * torch.randn(n_units, rank))
        self.n = nn.Parameter(init_std * torch.randn(n_units, rank))
        self.b = nn.Parameter(init_std * torch.randn(n_units, n_inputs)) if n_inputs else None
        self.d = nn.Parameter(init_std * torch.randn(n_units)) if has_bias else None

    @property
    def n_units(self) -> int:
        return self.m.shape[0]

    @property
    def rank(self) -> int:
        return self.m.shape[1]

    @property
    def n_inputs(self) -> int:
        return 0 if self.b is None else self.b.shape[1]

    @property
    def has_bias(self) -> bool:
        return self.d is not None

    def loadings(self) -> Loadings:
        """The live loadings m, b, d (gradients flow)."""
        return Loadings(self.m, self.b, self.d)

    def network(self) -> Network:
        """The network of the live parameters; ``.network().double()`` and ``torch.no_grad`` for analysis."""
        return Network(self.m, self.n, self.b, self.d, self.alpha, self.activation)

    def drive(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Recurrent drive F(z, u) = (1/K) sum_i n_i phi(m_i.z + b_i.u + d_i); z (..., R) -> (..., R)."""
        return self.network().drive(z, u)

    def vector_field(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """dz/dt = -z + F(z, u) in units of 1 / tau, (..., R)."""
        return self.network().vector_field(z, u)

    def step(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """One Euler step from z (..., R) under the input u (..., U)."""
        return self.network().step(z, u)

    def simulate(self, z0: Tensor, steps: int, u: Tensor | None = None) -> Tensor:
        """Simulate ``steps`` states from z0 (..., R), z0 included: (..., steps, R); u is (..., steps - 1 or more, U)."""
        return self.network().simulate(z0, steps, u)

    @torch.no_grad()
    def set_network(self, network: Network) -> LowRankRNN:
        """Copy a network's m, n, b, d into the parameters (cast to their type); returns self.

        Raises:
            UserError: where a shape differs, or an input weight or bias is on one side only.
        """
        for name in ("m", "n", "b", "d"):
            mine, theirs = getattr(self, name), getattr(network, name)
            shapes = [None if x is None else tuple(x.shape) for x in (mine, theirs)]
            if shapes[0] != shapes[1]:
                raise UserError(f"{name} of shape {shapes[0]}", str(shapes[1]))
            if mine is not None:
                mine.copy_(theirs)
        return self

    def extra_repr(self) -> str:
        return (
            f"n_units={self.n_units}, rank={self.rank}, n_inputs={self.n_inputs}, has_bias={self.has_bias}, "
            f"alpha={self.alpha}, activation={self.activation}"
        )
