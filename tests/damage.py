"""Damage of every kind to files: by bytes, by another file's content, and by what each format can hold. For tests/fuzz.py."""

from __future__ import annotations

import contextlib
import io
import math
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from matlab73 import cells
from scipy.io import savemat
from whole_files import MINE, RUN_FILES, STEPS, TRIALS, session, write_npz_with_pickles


class Payload:
    """Unpickled, it leaves a file that tells."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def truncated(data: bytes, rng) -> bytes:
    return data[: int(rng.integers(0, max(len(data), 1)))]


def flipped(data: bytes, rng) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(0, len(data), size=int(rng.choice([1, 2, 5, 20, 100]))):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def scrambled(data: bytes, rng) -> bytes:
    """A stretch of random bytes, zeros, or of another place in the file; or more bytes behind the end."""
    start = int(rng.integers(0, len(data)))
    size = int(rng.choice([4, 16, 256, 4096]))
    new = [rng.bytes(size), bytes(size), data[: min(size, 64)] * (size // 64 + 1), b"\xff" * size][rng.integers(4)]
    return data + new if rng.random() < 0.1 else data[:start] + new + data[start + len(new) :]


def foreign(data: bytes, rng, folder: Path, marker: Path) -> bytes:
    """Something else under the name: random bytes behind a true head, text, a pickle, another reader's file."""
    others = [folder / name for name in ("own.npz", "rat.mat", "rat73.mat", "nlb.h5", "planted.nwb", "flow.pt")]
    return [
        lambda: b"",
        lambda: rng.bytes(int(rng.integers(1, 5000))),
        lambda: data[: int(rng.choice([4, 8, 128, 512]))] + rng.bytes(3000),
        lambda: b"trial,neuron,rate\n0,1,2.5\n",
        lambda: b"<!doctype html><html></html>",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        lambda: pickle.dumps({"rates": Payload(marker)}),
        lambda: torch_pickle({"arguments": Payload(marker), "state": {}, "loadings_flow": 1, "mean": 2}),
        lambda: others[rng.integers(len(others))].read_bytes(),
        lambda: others[rng.integers(len(others))].read_bytes(),
        lambda: "räte: [ünïcödé, \u202e]\n".encode("latin-1", "replace"),
    ][rng.integers(11)]()


def torch_pickle(value) -> bytes:
    held = io.BytesIO()
    torch.save(value, held)
    return held.getvalue()


def misplaced(path: Path, rng, source: Path) -> Path:
    """No file, or none that can be read, at the place."""
    kind = rng.integers(8)
    if kind == 0:
        return path.with_name("äbsent " + path.name)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        path.symlink_to("/dev/zero")
    elif kind == 4:
        path.symlink_to(path)
    elif kind == 5:
        return path.with_name("x" * 300)
    elif kind == 6:
        return path.with_name("a\0b")
    else:
        path.write_bytes(source.read_bytes())
        path.chmod(0)
    return path


def other_dtype(x: np.ndarray, rng, marker: Path):
    try:
        return [
            lambda: x.astype(str),
            lambda: x.astype("S8"),
            lambda: x.astype(complex) + 1j,
            lambda: x.astype(bool),
            lambda: np.array([Payload(marker), *x.ravel()[1:].tolist()], dtype=object),
            lambda: x.astype(object),
            lambda: x.astype("int64").astype("datetime64[s]"),
            lambda: x.astype(np.float16),
            lambda: x.astype(np.longdouble),
            lambda: x.astype(">f8"),
            lambda: x.astype(np.int8),
            lambda: np.full(x.shape, 2**63 + 5, dtype=np.uint64),
            lambda: np.zeros(x.shape, dtype=[("a", float), ("b", "i4")]),
        ][rng.integers(13)]()
    except (ValueError, TypeError):
        return np.array("text")


def other_shape(x: np.ndarray, rng, marker: Path):
    return [
        lambda: x[:0] if x.ndim else x,
        lambda: x[..., :0] if x.ndim else x,
        lambda: x[:, :0] if x.ndim > 1 else x,
        lambda: x[None],
        lambda: x[..., None],
        lambda: x.ravel()[0] if x.size else x,
        lambda: x.T,
        lambda: x.ravel(),
        lambda: np.concatenate([x, x]) if x.ndim else np.array([x, x]),
        lambda: x[:1] if x.ndim else x,
        lambda: x[..., :1] if x.ndim else x,
        lambda: x[:, :1] if x.ndim > 1 else x,
        lambda: cells([x[: i + 1] for i in range(3)]) if x.ndim else cells([x, x]),  # ragged
    ][rng.integers(13)]()


def other_values(x: np.ndarray, rng, marker: Path):
    if x.dtype.kind not in "biuf":
        return np.array("strange")
    bad = x.astype(float).copy() if rng.random() < 0.8 else x.copy()
    whole = rng.random() < 0.3
    where = np.ones(bad.shape, bool) if whole else rng.random(bad.shape) < rng.choice([0.02, 0.2])
    values = [np.nan, np.inf, -np.inf, -1, 0.5, 1e308, -1e308, 0, 300, 1e-320, 2**40, 1e12]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad[where] = np.asarray(values[rng.integers(len(values))]).astype(bad.dtype)
    return bad


def leaves(content, path=()) -> Iterator[tuple]:
    """Places of the numbers in nested content."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, (*path, key))
    elif isinstance(content, np.ndarray) and content.dtype == object:
        for i, value in enumerate(content.flat):
            yield from leaves(value, (*path, i))
    else:
        yield path


def at(content, place):
    return content.flat[place] if isinstance(content, np.ndarray) else content[place]


def put(content, path: tuple, change: Callable) -> None:
    for place in path[:-1]:
        content = at(content, place)
    new = change(at(content, path[-1]))
    if isinstance(content, np.ndarray):
        content.flat[path[-1]] = new
    else:
        content[path[-1]] = new


def other_keys(content: dict, rng) -> dict:
    names = sorted(content)
    name = names[rng.integers(len(names))]
    return [
        lambda: {k: v for k, v in content.items() if k != name},
        lambda: {f"{k}é世" if k == name else k: v for k, v in content.items()},
        lambda: content | {"räten ☃": np.ones(3), "x" * 200: np.zeros(2)},
        lambda: {k.upper(): v for k, v in content.items()},
        lambda: {name: content[name]},
        lambda: content | {k: content[name] for k in names},
        lambda: {},
    ][rng.integers(7)]()


def declared_npz(path: Path, content: dict, rng) -> None:
    """Sizes in headers that are not those of the data, bombs, members twice."""
    names = sorted(content)
    name = names[rng.integers(len(names))]
    write_npz_with_pickles(path, {k: v for k, v in content.items() if k != name})
    shape = [(10**12,), (10**6, 10**6, 3), (2**62, 4), (-1, 4), (10**4, 10**4, 100)][rng.integers(5)]
    header = f"{{'descr': '<f8', 'fortran_order': {bool(rng.integers(2))}, 'shape': {shape}, }}"
    kind = rng.integers(8)
    if kind == 0:
        header = ["{'descr': __import__('os').getcwd(), 'shape': (1,)}", "{" * 500, "[]", "{'descr': '<f8'}"][
            rng.integers(4)
        ]
    text = header.encode().ljust(118) + b"\n"
    head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    if kind == 1:
        head = b"\x93NUMPY\x02\x00" + (2**31 - 1).to_bytes(4, "little") + text
    if kind == 2:
        head = b"\x93NUMPY\x07\x00" + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        if kind in (3, 4):  # a bomb: 100 MB of zeros in some kB
            shape = (TRIALS, STEPS, 240_000)
            held = io.BytesIO()
            np.lib.format.write_array_header_1_0(held, {"descr": "<f8", "fortran_order": False, "shape": shape})
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(held.getvalue())
                for _ in range(TRIALS):
                    member.write(bytes(8 * STEPS * 240_000))
        else:
            archive.writestr(f"{name}.npy", head + bytes(64))
        if kind == 5:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                archive.writestr(f"{names[0]}.npy", head + bytes(8))
                archive.writestr(f"../{names[0]}.npy", head)
    if kind in (4, 6, 7):  # the directory of the archive lies about sizes, compression or encryption
        data = bytearray(path.read_bytes())
        for found in list(re.finditer(b"PK\x01\x02", data))[-2:]:
            where = found.start()
            place, size = [(24, 4), (20, 4), (10, 2), (8, 2), (42, 4)][rng.integers(5)]
            data[where + place : where + place + size] = [rng.bytes(size), b"\x01".ljust(size, b"\0")][rng.integers(2)]
        path.write_bytes(data)


def declared_matlab5(path: Path, content: dict, rng) -> None:
    if rng.random() < 0.5:  # a bomb
        key = ("trials", "neurons")[rng.integers(2)]
        if key == "trials":
            content[key].flat[0]["spiketrains"] = cells([np.zeros((1, 4_000_000), np.uint8) for _ in range(10)])
        else:
            content[key] = np.zeros((4000, 5000))
        savemat(path, content, do_compression=True)
        return
    savemat(path, content)
    data = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 4))):  # a size of an element or of a dimension
        place = 128 + 4 * int(rng.integers(1, (len(data) - 128) // 4))
        data[place : place + 4] = int(rng.choice([2**31 - 1, 2**32 - 1, 10**6, 65536])).to_bytes(4, "little")
    path.write_bytes(data)


def references_to(file: h5py.File, name: str) -> list[tuple[str, str]]:
    """Objects and their attributes that refer to the object of that name."""
    found = []

    def look(where, item):
        for key, value in item.attrs.items():
            with contextlib.suppress(ValueError, KeyError):  # to an object that a round before has removed
                if isinstance(value, h5py.Reference) and value and file[value].name == f"/{name}":
                    found.append((where, key))

    file.visititems(look)
    return found


def hurt_hdf5(path: Path, rng, kind: str, marker: Path) -> None:
    """Damage with HDF5's own means: data sets of other content, links to nowhere, sizes that are only declared."""
    with h5py.File(path, "r+") as file:
        found = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        useful = [x for x in found if re.search(r"units|trials|spikes|running|refs|scratch|electrodes", x)] or found
        for _ in range(int(rng.integers(1, 4))):
            name = useful[rng.integers(len(useful))]
            try:
                if not isinstance(file[name], h5py.Dataset):
                    continue
            except (KeyError, RuntimeError, OSError):  # a link to nowhere, of a round before
                continue
            item = file[name]
            attributes, old = dict(item.attrs.items()), item[()] if item.size is None or item.size < 10**7 else 0.0
            shape = item.shape or (1,)
            numbers = isinstance(old, (np.ndarray, np.generic)) and np.asarray(old).dtype.kind in "biuf"
            if kind == "values" and numbers and np.ndim(old):  # in its place, so that references to it hold
                with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
                    item[...] = other_values(old, rng, marker)
                continue
            pointing = references_to(file, name)
            del file[name]
            new = None
            if kind == "dtype" and numbers:
                new = other_dtype(np.asarray(old), rng, marker)
            elif kind == "shape" and numbers:
                new = other_shape(np.asarray(old), rng, marker)
            if new is not None:
                new = np.asarray(new)
                try:
                    file[name] = new.astype("S") if new.dtype.kind in "UOMm" else new
                except (TypeError, ValueError):
                    file[name] = h5py.Empty("f8")
            elif kind == "declared":
                choice = rng.integers(4)
                huge = [(10**12, *shape[1:]), (10**6,) * len(shape), tuple(10**5 for _ in shape), (2**40,) * 2]
                huge = huge[rng.integers(4)]
                if choice < 3:
                    dtype = np.asarray(old).dtype if numbers else np.dtype("f8")
                    file.create_dataset(name, shape=huge, dtype=dtype, chunks=tuple(min(x, 64) for x in huge))
                else:  # really there, packed
                    packed = np.zeros((12_000_000, *shape[1:])[:1] + (1,) * (len(shape) - 1))
                    file.create_dataset(name, data=packed, compression="gzip", compression_opts=1)
            else:
                instead = [
                    lambda name=name: file.create_group(name),
                    lambda name=name: file.__setitem__(name, h5py.SoftLink("/nowhere")),
                    lambda name=name: file.__setitem__(name, h5py.SoftLink("/" + name)),
                    lambda name=name: file.__setitem__(name, h5py.ExternalLink("/etc/hostname", "/x")),
                    lambda name=name: file.__setitem__(name, h5py.Empty("f8")),
                    lambda name=name: file.__setitem__(name, "text"),
                    lambda name=name: file.create_dataset(name, (3,), dtype=h5py.vlen_dtype(float)),
                    lambda name=name: file.create_dataset(name, (3,), dtype=h5py.ref_dtype),
                    lambda name=name: file.create_dataset(name, (4,), "u1", external=[("/etc/hostname", 0, 4)]),
                    lambda: None,
                    lambda name=name, old=old: file.__setitem__(name + "é世", old),
                ]
                with contextlib.suppress(ValueError):  # the name is taken, by a round before
                    instead[rng.integers(len(instead))]()
            if new is not None or kind == "declared":
                for where, key in pointing:
                    with contextlib.suppress(KeyError):
                        file[where].attrs[key] = file[name].ref
            if rng.random() < 0.8:
                with contextlib.suppress(Exception):
                    for key, value in attributes.items():
                        file[name].attrs[key] = value


def hurt_saved(path: Path, rng, kind: str, marker: Path) -> None:
    """Another value somewhere in what torch saved."""
    saved = torch.load(path, weights_only=True)
    places = []

    def walk(item, place=()):
        if isinstance(item, dict):
            for key in item:
                places.append((item, key))
                walk(item[key])
        elif isinstance(item, list):
            for i in range(len(item)):
                places.append((item, i))
                walk(item[i])

    walk(saved)
    for _ in range(int(rng.integers(1, 3))):
        holder, key = places[rng.integers(len(places))]
        old = holder.get(key) if isinstance(holder, dict) else holder[key]
        if kind == "keys" and isinstance(holder, dict):
            holder.pop(key, None)
            if rng.random() < 0.3:
                holder["é世"] = old
        elif isinstance(old, torch.Tensor) and kind != "declared":
            change = {"dtype": other_dtype, "shape": other_shape}.get(kind, other_values)
            new = np.asarray(change(old.numpy(), rng, marker))
            held = new.dtype.kind in "biufc" and new.itemsize <= 8 and new.dtype.isnative
            holder[key] = torch.from_numpy(new.copy()) if held else "text"
        elif kind == "declared":
            huge = [10**9, 2**62, torch.zeros(1).expand(10**12), torch.zeros(1).expand(10**6, 10**6), 1e300]
            holder[key] = huge[rng.integers(len(huge))]
        else:
            values = [None, "text", -1, 0, 3, 1.5, math.nan, math.inf, [], {}, [1, 2], True, 10**30, torch.zeros(2)]
            holder[key] = values[rng.integers(len(values))]
    torch.save(saved, path)


YAML_LINES = [
    "seed: abc", "seed: [1", "seed: .nan", "seed: 1e999", "seed: 99999999999999999999999", "seed: -1", "seed:", "nope: 3",
    "lrrnn: 3", "lrrnn: [1, 2]", "lrrnn: null", "lrrnn: {rank: two}", "lrrnn: {rnak: 2}", "lrrnn: {rank: 1e9}",
    "data: {n_neurons: 0}", "data: {n_neurons: -5}", "data: {n_neurons: .inf}", "data: {n_grid: 99999999}", "data: null",
    "data: text", "data: {fold: 2.5}", "data: {name: nope}", "connectivity: {flow: 3}", "connectivity: {flow: {nope: 1}}",
    "connectivity: {sigma: .nan}", "connectivity: {sigma: ''}", "connectivity: {flow: {base: gamma}}",
    "connectivity: {regularizer: 1, regularizer_published: 1}", "trainer: {accelerator: abacus}", "trainer: {devices: -3}",
    "logger: {tags: text}", "logger: {tags: {a: 1}}", "experiment_name: ${nope}", "experiment_name: ${oc.env:NOPE_NOPE}",
    "experiment_name: ${run_name:}", "experiment_name: [1]", "experiment_name: ${nope:1}", "experiment_name: '${'",
    "seed: ${seed}", "a: &a [1]\nseed: *a", "seed: *b", "seed: !!python/object/apply:os.getcwd []", "seed: 2\nseed: 3",
    "- a\n- b", "'", "\t", "{", "? [1]\n: 2", "1: 2", "hydra: {run: {dir: 3}}", "hydra: 3", "defaults: 3", "defaults: [nope]",
    "defaults:\n  - override /data: nope", "defaults:\n  - override /nope: x", "defaults:\n  - 3", "stages: []", "stages: 3",
    "stages: [nope]", "stages: {a: 1}", "force: maybe", "data: {<<: {n_neurons: x}}", "\x00", "seed: 2026-01-01", "? ", "é: 世",
    "data: {n_neurons: 0x7fffffffffffffffff}", "data: {bin_s: 1e-320}", "data: {observation: spikes, rate_scale_hz: 1e300}",
]  # fmt: skip


def hurt_yaml(rng, kind: str) -> str:
    lines = MINE.splitlines()
    count = int(rng.integers(1, 3))
    chosen = [YAML_LINES[i] for i in rng.integers(0, len(YAML_LINES), size=count)]
    if kind == "keys":
        del lines[rng.integers(len(lines))]
    top = [line.partition(":")[0] for line in chosen]
    if rng.random() < 0.7:  # in place of what stands there, else twice in the file
        kept, inside = [], False
        for line in lines:
            inside = line[:1] in (" ", "-") and inside if line[:1] in (" ", "-") else line.partition(":")[0] in top
            if not inside:
                kept.append(line)
        lines = kept
    return "\n".join([*lines, *chosen]) + "\n"


BYTES = {"truncated": truncated, "flipped": flipped, "scrambled": scrambled}
CONTENT = {"dtype": other_dtype, "shape": other_shape, "values": other_values}
KINDS = (*BYTES, "foreign", "misplaced", *CONTENT, "keys", "declared", "whole")


def damaged(how, kind: str, whole: Path, folder: Path, rng: np.random.Generator) -> Path:
    """The damaged file, written to ``folder``; ``how``: its reader in tests/fuzz.py."""
    name = how.whole[rng.integers(len(how.whole))]
    source, path, marker = whole / name, folder / name, folder / "unpickled"
    if source.is_dir():
        shutil.copytree(source, path)
        inner = RUN_FILES[rng.integers(len(RUN_FILES))]
        path, source = path / inner, source / inner
    if kind == "misplaced":
        path.unlink(missing_ok=True)
        moved = misplaced(path, rng, source)
        return folder / name if (whole / name).is_dir() else moved
    data = source.read_bytes()
    suffix = path.suffix
    arrays, write = how.content, how.write
    if suffix == ".npz" and arrays is None:
        loaded = dict(np.load(source, allow_pickle=False))
        arrays, write = lambda rng: loaded, write_npz_with_pickles

    def by_bytes() -> None:
        path.write_bytes(list(BYTES.values())[rng.integers(3)](data, rng))

    if kind in BYTES:
        path.write_bytes(BYTES[kind](data, rng))
    elif kind == "foreign":
        path.write_bytes(foreign(data, rng, whole, marker))
    elif kind == "whole":
        path.write_bytes(data)
    elif suffix == ".yaml" and path.parent.name != "run":
        path.write_text(hurt_yaml(rng, kind))
    elif suffix == ".pt":
        path.write_bytes(data)
        hurt_saved(path, rng, kind, marker)
    elif suffix == ".npz" and kind == "declared":
        declared_npz(path, arrays(rng), rng)
    elif suffix == ".mat" and name == "rat.mat" and kind == "declared":
        declared_matlab5(path, session(rng), rng)
    elif (
        suffix in (".h5", ".nwb", ".mat")
        and h5py.is_hdf5(source)
        and (arrays is None or rng.random() < 0.5 or kind == "declared")
    ):
        path.write_bytes(data)
        hurt_hdf5(path, rng, kind, marker)
    elif arrays is not None:
        content = arrays(rng)
        if kind == "keys":
            content = other_keys(content, rng)
        elif kind in CONTENT:
            places = list(leaves(content))
            for _ in range(int(rng.integers(1, 3))):
                with contextlib.suppress(KeyError, IndexError, TypeError):
                    change = lambda x: CONTENT[kind](np.asarray(x), rng, marker)  # noqa: E731
                    put(content, places[rng.integers(len(places))], change)
        try:
            write(path, content)
        except Exception:  # content that the format cannot hold
            by_bytes()
    else:
        by_bytes()
    return folder / name
