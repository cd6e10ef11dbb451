"""Loops over time and their gradients, each written out by hand: what a fit to spikes spends its time in.

Autograd gives the same numbers (tests compare them) at several times the cost: here every gradient with respect to
weights is one matrix product over all times at the end, and each step of time is a handful of operations in place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from connector.dynamics import activation as activation_named

RATE_FLOOR = 1e-8


def _columns(weights: Tensor) -> Tensor:
    """The same matrix with contiguous columns: with few of them, products go twice as fast."""
    return weights.T.contiguous().T


class Scan(torch.autograd.Function):
    """All steps of equation (1) of :mod:`connector.dynamics` with an additive term.

    tanh(h) is computed as 2 sigmoid(2 h) - 1, which takes a quarter of the time.
    """

    @staticmethod
    def forward(ctx, z0, extra, inputs, loadings, n, alpha, activation):
        """z0 (S, B, R), extra (T-1, S, B, R), inputs (T-1, B, U) or None, n (K, R) -> states (T, S, B, R).

        ``loadings`` are m, b, d side by side, without b where there are no inputs.
        """
        steps, samples, trials, rank = extra.shape
        fast = activation == "tanh"
        loadings = loadings * (2.0 if fast else 1.0)
        output = n * ((2.0 if fast else 1.0) * alpha / len(n))
        # (z, u, 1) of every time and trial; the next z is added up in its place.
        x = z0.new_ones(steps + 1, samples, trials, loadings.shape[1])
        x[0, ..., :rank] = z0
        x[1:, ..., :rank] = extra - 0.5 * output.sum(0) if fast else extra
        if inputs is not None:
            x[:-1, ..., rank:-1] = inputs[:, None]
        x = x.flatten(1, 2)
        hidden = z0.new_empty(steps, samples * trials, len(n))
        slopes = None if fast else torch.empty_like(hidden)
        phi = None if fast else activation_named(activation)
        read, drive = loadings.T.contiguous(), _columns(output)
        z = x[..., :rank].unbind(0)
        for t, (now, h) in enumerate(zip(x.unbind(0), hidden.unbind(0))):
            torch.mm(now, read, out=h)
            if fast:
                h.sigmoid_()
            else:
                slopes[t] = phi.derivative(h)
                h.copy_(phi(h))
            z[t + 1].addmm_(h, drive).add_(z[t], alpha=1 - alpha)
        ctx.save_for_backward(x, hidden, slopes, loadings, output)
        ctx.alpha, ctx.shape = alpha, (steps, samples, trials, rank)
        return x[..., :rank].reshape(steps + 1, samples, trials, rank)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states):
        x, hidden, slopes, loadings, output = ctx.saved_tensors
        steps, samples, trials, rank = ctx.shape
        fast = slopes is None
        # with respect to what the nonlinearity is taken of
        grad_h = torch.addcmul(hidden, hidden, hidden, value=-1) if fast else slopes
        grad_states = grad_states.reshape(steps + 1, samples * trials, rank)
        adjoint = grad_states.clone(memory_format=torch.contiguous_format)  # with respect to each state
        back, read = output.T.contiguous(), _columns(loadings[:, :rank])
        product = torch.empty_like(grad_h[0]) if steps else None
        g = adjoint.unbind(0)
        for t, slope in reversed(list(enumerate(grad_h.unbind(0)))):
            torch.mm(g[t + 1], back, out=product)
            slope.mul_(product)
            g[t].addmm_(slope, read).add_(g[t + 1], alpha=1 - ctx.alpha)
        grad_z0 = adjoint[0].view(samples, trials, rank)
        grad_extra = adjoint[1:].view(steps, samples, trials, rank)
        if not any(ctx.needs_input_grad[2:]):
            return grad_z0, grad_extra, *(None,) * 5
        grad_inputs = None
        if ctx.needs_input_grad[2]:
            grad_inputs = (grad_h @ loadings[:, rank:-1]).view(steps, samples, trials, -1).sum(1)
        # The narrow matrix first: the other order takes seven times as long.
        grad_loadings = (x[:-1].flatten(0, 1).T @ grad_h.flatten(0, 1)).T * (2.0 if fast else 1.0)
        flat = adjoint[1:].flatten(0, 1)
        grad_n = (flat.T @ hidden.flatten(0, 1)).T * (ctx.alpha / hidden.shape[-1])
        if fast:
            grad_n = 2 * grad_n - flat.sum(0) * (ctx.alpha / len(grad_n))
        return grad_z0, grad_extra, grad_inputs, grad_loadings, grad_n, None, None


class PairOfGRUs(torch.autograd.Function):
    """Two gated recurrent units side by side, each with weights and a sequence of its own, from a state of zero.

        r, v = sigmoid(W x + w + H h + c)_{r, v},    a = tanh((W x + w)_a + r (H h + c)_a),    h' = a + v (h - a)

    Weights are those of two ``torch.nn.GRU``, stacked; so are the numbers.
    """

    @staticmethod
    def forward(ctx, x, w_input, b_input, w_hidden, b_hidden):
        """x (time, 2, B, F), weights (2, 3 H, F), (2, 3 H), (2, 3 H, H), (2, 3 H) -> states (time, 2, B, H)."""
        steps, _, trials, _ = x.shape
        size = w_hidden.shape[-1]
        gates = torch.matmul(x, w_input.transpose(1, 2))
        gates += b_input[:, None]
        states = x.new_zeros(steps + 1, 2, trials, size)
        recurrent = x.new_empty(steps, 2, trials, size)  # (H h + c)_a
        w, c = w_hidden.transpose(1, 2).contiguous(), b_hidden[:, None]
        for t in range(steps):
            hh = torch.baddbmm(c, states[t], w)
            open_, new = gates[t, ..., : 2 * size], gates[t, ..., 2 * size :]
            open_.add_(hh[..., : 2 * size]).sigmoid_()
            recurrent[t] = hh[..., 2 * size :]
            new.addcmul_(open_[..., :size], recurrent[t]).tanh_()
            torch.lerp(new, states[t], open_[..., size:], out=states[t + 1])
        ctx.save_for_backward(x, w_input, w_hidden, gates, recurrent, states)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, w_input, w_hidden, gates, recurrent, states = ctx.saved_tensors
        r, v, a = gates.chunk(3, -1)
        # What one unit of the state's gradient is at each gate, all times at once.
        at_a = (1 - v) * (1 - a * a)
        at_r, at_v = at_a * recurrent * r * (1 - r), (states[:-1] - a) * v * (1 - v)
        at_hidden = torch.stack([at_r, at_v, at_a * r], 3)  # (time, 2, B, 3, H)
        g = torch.zeros_like(states[0])
        adjoint = torch.empty_like(v)
        for t in range(len(v) - 1, -1, -1):
            g = torch.add(g, grad[t], out=adjoint[t])
            at_hidden[t].mul_(g[..., None, :])
            g = torch.baddbmm(g * v[t], at_hidden[t].flatten(2), w_hidden)
        to_hidden = at_hidden.flatten(3)
        to_input = torch.cat([to_hidden[..., : 2 * v.shape[-1]], at_a * adjoint], -1)
        # (2, time * B, .) of each direction
        at_input, at_state, before, given = (
            y.transpose(0, 1).flatten(1, 2) for y in (to_input, to_hidden, states[:-1], x)
        )
        grad_x = to_input @ w_input if ctx.needs_input_grad[0] else None
        return (
            grad_x,
            (given.transpose(1, 2) @ at_input).transpose(1, 2),
            at_input.sum(1),
            at_state.transpose(1, 2) @ before,
            at_state.sum(1),
        )


class PoissonNats(torch.autograd.Function):
    """Log-likelihood of counts (N, K) under scale * softplus(z C^T + offset), summed over neurons: (S, N).

    The terms log(y!) and y log(scale) are left out. z (S, N, R), C (K, R), offset (N, K).
    """

    @staticmethod
    def forward(ctx, z, readout, offset, counts, scale):
        x = torch.matmul(z, readout.T).add_(offset)
        rate = F.softplus(x).clamp_min_(RATE_FLOOR)
        nats = (counts * torch.log(rate)).sub_(rate, alpha=scale).sum(-1)
        if any(ctx.needs_input_grad):
            # sigmoid(x) = 1 - exp(-softplus(x))
            slope = torch.expm1(-rate).neg_().mul_((counts / rate).sub_(scale))
            ctx.save_for_backward(z, readout, slope)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        z, readout, slope = ctx.saved_tensors
        slope = slope.mul_(grad[..., None])
        grad_readout = (z.flatten(0, 1).T @ slope.flatten(0, 1)).T  # the narrow matrix first, as above
        return slope @ _columns(readout), grad_readout, slope.sum(0), None, None


def run_pair(grus: tuple[torch.nn.GRU, torch.nn.GRU], x: Tensor) -> Tensor:
    """States (time, 2, B, H) of two GRUs of one size on the sequences x (time, 2, B, F)."""
    weights = (
        torch.stack([getattr(gru, name) for gru in grus])
        for name in ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0")
    )
    return PairOfGRUs.apply(x, *weights)
