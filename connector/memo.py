"""What is a function of its arguments alone, kept by a process that runs several jobs: those on one recording share its
reading, and those on one fold of it baselines, nulls and the choice of the rank, whatever their seeds.

Nothing is kept until :func:`share` is called, as sweeps do. Keys are made of the content of all arguments, so that nothing
that is kept can be out of date; what was used least recently is dropped first.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")
_MOST_BYTES = 2**30
_allowed = 0
_kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()


class _Unknown(Exception):
    """A value whose content has no key."""


def share(most_bytes: int = _MOST_BYTES) -> None:
    """From now on keep so much; 0: nothing, and forget what is kept."""
    global _allowed
    _allowed = most_bytes
    _shrink()


def once(key: Any, make: Callable[[], _T]) -> _T:
    """What ``make`` has returned before under an equal key, or returns now; the caller changes no part of it.

    Args:
        key: of values, tensors and arrays, in tuples, lists, mappings and dataclasses; of anything else nothing is kept.
    """
    if not _allowed:
        return make()
    try:
        known = _digest(key)
    except _Unknown:
        return make()
    if known not in _kept:
        value = make()
        _kept[known] = value, _size(value)
    _kept.move_to_end(known)
    value = _kept[known][0]
    _shrink()
    return value


def remembered(function: Callable[..., _T]) -> Callable[..., _T]:
    """The function, whose results are kept by the content of its arguments; each caller has a copy of its own."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> _T:
        if not _allowed:
            return function(*arguments, **named)
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        key = (function.__module__, function.__qualname__, bound.arguments)
        return deepcopy(once(key, lambda: function(*arguments, **named)))

    return call


def _shrink() -> None:
    while sum(size for _, size in _kept.values()) > _allowed:
        _kept.popitem(last=False)


def _digest(key: Any) -> str:
    into = hashlib.blake2b(digest_size=32)
    _add(into, key)
    return into.hexdigest()


def _add(into: Any, value: Any) -> None:
    if hasattr(value, "detach"):  # a tensor; torch is imported where there is one
        value = value.detach().cpu().numpy()
    into.update(f"{type(value).__qualname__} ".encode())
    if hasattr(value, "tobytes"):
        into.update(f"{value.dtype.str}{value.shape} ".encode())
        into.update(value.tobytes())
    elif is_dataclass(value) and not isinstance(value, type):
        _add(into, [getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, Mapping):
        _add(into, list(value.items()))
    elif isinstance(value, (tuple, list)):
        into.update(f"{len(value)} ".encode())
        for part in value:
            _add(into, part)
    elif value is None or isinstance(value, (bool, int, float, str, bytes)):
        into.update(f"{value!r} ".encode())
    else:
        raise _Unknown


def _size(value: Any) -> int:
    """Bytes of the tensors and arrays in a value."""
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if is_dataclass(value) and not isinstance(value, type):
        return sum(_size(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, (tuple, list)) else 64
