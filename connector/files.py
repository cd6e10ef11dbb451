"""Files that may be damaged or hostile: what they hold is measured before it is read, and nothing in them is executed.

Every reader of Connector refuses with UserError; none unpickles objects, follows a size that the file does not hold, or
takes more memory than it is allowed. Every file is written aside and renamed, so that none is ever read half-written.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from connector.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MAX_GIGABYTES = 16.0
YAML_MOST = 200_000  # characters of a configuration, and entries once its aliases stand for what they name
_YAML_DEEPEST = 50
_LONGEST_NAME = 255  # bytes, on most file systems
# What numpy, zipfile and torch raise at damaged content. A member packed in a way that is not known: NotImplementedError;
# an encrypted one: RuntimeError; headers of npy are Python literals, whose parser has errors of its own.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, TypeError, NotImplementedError, RuntimeError, SyntaxError,
    KeyError, IndexError, AttributeError, OverflowError, MemoryError, AssertionError, tokenize.TokenError,
)  # fmt: skip


def require_file(path: str | os.PathLike, remedy: str = "") -> Path:
    """The path of a regular file that can be read.

    Raises:
        UserError: no such file, a directory, a pipe or device, no permission.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise UserError("a file to read", f"no file {path}", remedy)
        if not path.is_file():
            raise UserError("a file to read", f"{path}, which is not a file")
        with open(path, "rb"):
            return path
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a link to itself, a null character
        raise UserError("a file that can be read", f"{str(path)[:200]!r} ({_reason(error)})") from error


def paths_of(path: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """Of one path, or of a list of them, none twice.

    Raises:
        UserError: none; the same twice.
    """
    paths = [Path(x) for x in ([path] if isinstance(path, (str, os.PathLike)) else path)]
    if not paths or len({os.path.abspath(x) for x in paths}) < len(paths):
        raise UserError("data.path naming one file, or a list of different ones", ", ".join(map(str, paths)) or "none")
    return paths


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def unreadable(path: Path, expected: str, error: Exception) -> UserError:
    """The mistake to raise where a library could not parse a file: its first line as the reason."""
    return UserError(expected, f"{path.name}, which cannot be read ({_reason(error)})", "copy or write the file again")


@contextlib.contextmanager
def refusing_damage(path: Path, expected: str) -> Iterator[None]:
    """Turn what numpy, zipfile or torch raise at damaged content into UserError."""
    try:
        yield
    except _DAMAGE as error:
        raise unreadable(path, expected, error) from error


def memory_left_gb() -> float:
    """Memory that this process may still take, GB: free in the machine and within its own limit, as far as known."""
    left = math.inf
    with contextlib.suppress(OSError, AttributeError, TypeError):
        left = 1.024e-6 * int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
    with contextlib.suppress(OSError, ImportError, AttributeError, TypeError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            left = min(left, 1e-9 * limit - _used_gb())
    return left


@contextlib.contextmanager
def limited_memory(gigabytes: float) -> Iterator[None]:
    """Within the block this process can take ``gigabytes`` more, and a quarter for libraries themselves.

    For HDF5, which takes as much memory as the length of a text or the size of a chunk declares before it finds that the
    file does not hold it, and shows neither beforehand: its allocation then fails, and with it the reading. Without effect
    where the system does not tell, or cannot limit, a process's memory.
    """
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = int(1e9 * (_used_gb() + gigabytes + 0.25))
        wanted = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    except (ImportError, AttributeError, TypeError, ValueError, OSError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _used_gb() -> float:
    """Address space of this process; raises TypeError or OSError where the system does not tell."""
    return 1.024e-6 * int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def check_size(gigabytes: float, max_gigabytes: float, remedy: str) -> None:
    """Refuse arrays that would not fit, before they are allocated."""
    if gigabytes > max_gigabytes:
        raise UserError(f"arrays of at most {max_gigabytes:g} GB (data.max_gigabytes)", f"{gigabytes:.3g} GB", remedy)
    if gigabytes > 0.01 and gigabytes > (left := memory_left_gb()):
        raise UserError(f"arrays that fit into the {left:.3g} GB of memory left", f"{gigabytes:.3g} GB", remedy)


def read_arrays(
    path: Path, wanted: tuple[str, ...] | None = None, max_gigabytes: float = MAX_GIGABYTES, what: str = "an npz file"
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays of an npz file by name, and the names of those that were not ``wanted`` (None: all are).

    Raises:
        UserError: no zip archive, damaged, too large once unpacked, or with arrays of objects, which would be unpickled.
    """
    require_file(path)
    with refusing_damage(path, f"{what} that is whole"), zipfile.ZipFile(path) as archive:
        listed = archive.infolist()
        members = {_name(m): m for m in listed if wanted is None or _name(m) in wanted}
        names = [_name(member) for member in listed]
        twice = sorted({name for name in members if names.count(name) > 1})
        if twice:
            raise UserError(f"{what} with each name once", f"{', '.join(twice)} twice in {path.name}")
        unpacked = sum(member.file_size for member in members.values())
        check_size(
            unpacked / 1e9, max_gigabytes, "raise data.max_gigabytes if the memory is there, or save fewer trials"
        )
        for name, member in members.items():
            _check_header(archive, name, member)
        values = {}
        for name, member in members.items():
            with archive.open(member) as file:
                values[name] = np.lib.format.read_array(file, allow_pickle=False)
    return values, sorted(set(names) - set(members))


def _name(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


def _check_header(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> None:
    """Refuse object arrays, and headers that announce more than the member holds, before anything is allocated."""
    with archive.open(member) as file:
        if _npy_header(file, member.file_size)[1].hasobject:
            raise _pickled(name)


def _pickled(name: str) -> UserError:
    return UserError(
        f"{name} as an array of numbers",
        "an object array (ragged trials, or a list of arrays)",
        "pad the trials to one length and give `lengths`; or save each under a name of its own, "
        "numpy.savez(FILE, **{f'trial{i}': x for i, x in enumerate(TRIALS)}), and use data=arrays data.activity=trial*",
    )


def _npy_header(file: Any, size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array of a npy file of so many bytes. Raises ValueError where it does not hold that array."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    held = math.prod(shape) * dtype.itemsize == size - file.tell()
    if not dtype.hasobject and (min(shape, default=0) < 0 or not held):
        raise ValueError("the size of the data does not fit the header")
    return shape, dtype


def array_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of each array of an npz file, or of the one of a npy file (under the file's name without its ending).

    Raises:
        UserError: damaged.
    """
    with refusing_damage(path, "an npz or npy file that is whole"):
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                return {path.stem: _npy_header(file, path.stat().st_size)}
        found = {}
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    with archive.open(member) as file:
                        found[_name(member)] = _npy_header(file, member.file_size)
        return found


def read_npy(path: Path, max_gigabytes: float = MAX_GIGABYTES) -> np.ndarray:
    """The array of a npy file; raises UserError for what is none, is damaged, too large, or would be unpickled."""
    with refusing_damage(path, "a npy file that is whole"), open(path, "rb") as file:
        check_size(1e-9 * path.stat().st_size, max_gigabytes, "raise data.max_gigabytes if the memory is there")
        if _npy_header(file, path.stat().st_size)[1].hasobject:
            raise _pickled(path.name)
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def write_saved(saved: Any, path: str | os.PathLike) -> None:
    """Write plain values and tensors for :func:`read_saved`: identical bytes for identical content, whatever the name.

    By way of memory: torch.save to a path writes its name into the file, and hides a full disk behind an error of its own.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(saved, buffer)
    with open(path, "wb") as file:
        file.write(buffer.getbuffer())


def read_saved(path: str | os.PathLike, what: str, map_location: Any = "cpu") -> Any:
    """What :func:`write_saved` or torch.save wrote, of plain values and tensors only.

    Raises:
        UserError: no file of torch's, damaged, or with objects in it.
    """
    import torch

    path = require_file(path)
    check_size(1e-9 * path.stat().st_size, MAX_GIGABYTES, "this is no file that Connector wrote")
    try:
        saved = torch.load(path, map_location=map_location, weights_only=True)
        _check_held(saved)
        return saved
    except Exception as error:  # torch's own unpickler, at damage, fails in any way that its operations can
        raise unreadable(path, f"{what} that is whole", ValueError(_reason(error).split("\x1b")[0])) from error


def _check_held(saved: Any, depth: int = 0) -> None:
    """Refuse tensors of a size that is only declared, one number standing for all. Raises ValueError."""
    import torch

    if isinstance(saved, torch.Tensor):
        declared = saved.numel() * saved.element_size()
        if saved.layout != torch.strided or declared > max(10 * saved.untyped_storage().nbytes(), 10**6):
            raise ValueError(f"a tensor of shape {tuple(saved.shape)} that the file does not hold")
    elif isinstance(saved, (dict, list, tuple)) and depth < 20:
        for value in saved.values() if isinstance(saved, dict) else saved:
            _check_held(value, depth + 1)


def check_module_state(expected: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Refuse a state dict of other names, shapes or kinds of numbers, or with NaN. Raises ValueError."""
    import torch

    if not isinstance(state, dict) or state.keys() != expected.keys():
        raise ValueError("other parameters than those of this module")
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.shape != expected[name].shape or not value.is_floating_point():
            raise ValueError(f"{name} is not of shape {tuple(expected[name].shape)}")
        if torch.isnan(value).any():
            raise ValueError(f"{name} holds NaN")


# --- writing --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a path aside of ``path`` to write to; it takes its place only when the block ends well, whole on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    long = len(os.fsencode(path.name)) > _LONGEST_NAME - 20
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16] if long else path.name
    aside = path.with_name(f".{name}.{os.getpid()}.part")
    try:
        yield aside
        move_into_place(aside, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(aside)):  # as it is known outside
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def move_into_place(aside: Path, path: Path) -> None:
    """Rename a file that was written aside, after its content has reached the disk: no crash leaves half of it there."""
    _flush(aside)
    os.replace(aside, path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")  # of names of files that are no text


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as comma-separated values, a line for the header and one for each row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue()


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays (None left out), identical bytes for identical content."""
    with atomic(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, value in arrays.items():
            if value is None:
                continue
            array = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
            # A fixed date: np.savez stamps the time of writing, which makes equal results look different.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as handle:
                np.lib.format.write_array(handle, array, allow_pickle=False)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz by name; raises UserError for what is none or is damaged."""
    return read_arrays(Path(path))[0]


def check_yaml(text: str, name: str) -> None:
    """Refuse YAML that would take hours to read: too long, nested too deeply, or of aliases of aliases.

    Raises:
        UserError: as said; yaml.YAMLError: no YAML.
    """
    import yaml

    def refuse(got: str) -> UserError:
        return UserError(
            f"options in YAML of at most {YAML_MOST} characters and entries in {name}", got, "shorten the file"
        )

    if len(text) > YAML_MOST:
        raise refuse("more characters")
    sizes: dict[str, float] = {}  # of what an anchor names
    held, anchors = [0.0], [""]  # of the collections that are open
    stream = io.StringIO(text)
    stream.name = name  # as errors give it
    for event in yaml.parse(stream, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):  # of a collection that is still open: without end
            held[-1] += sizes.get(event.anchor, math.inf)
        elif isinstance(event, yaml.ScalarEvent):
            held[-1] += 1
            sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            held.append(1)
            anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            size = held.pop()
            sizes[anchors.pop()] = size
            held[-1] += size
        if held[-1] > YAML_MOST or len(held) > _YAML_DEEPEST:
            many = (
                "collections within collections" if len(held) > _YAML_DEEPEST else "aliases (*NAME) that stand for more"
            )
            raise refuse(many)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, as plain values.

    Raises:
        UserError: no file, no YAML, or one that :func:`check_yaml` refuses.
    """
    import yaml

    require_file(path)
    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text, path.name)
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise unreadable(path, "the options of a run, in YAML", error) from error


def read_json(path: Path) -> dict:
    """An object of a JSON file; empty where there is no such file."""
    if not path.exists():
        return {}
    require_file(path)
    with refusing_damage(path, f"{path.name} as a JSON object"):
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}")
        return value


def file_checksum(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def linked_files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files that an HDF5 file reads parts of itself from, and those that these read from: external links, datasets kept
    outside, virtual datasets. Files that are not there are left out; of another kind of file there are none. Of a list of
    files all but the first, and what they all read from."""
    path, *others = [path] if isinstance(path, (str, Path)) else path
    found = [Path(other).resolve() for other in others]
    waiting = [Path(path), *found]
    while waiting:
        for target in _targets(file := waiting.pop()):
            # As HDF5 looks for them: beside the file that names them, by their own name there, and from here.
            places = (file.parent / target, file.parent / Path(target).name, Path(target))
            there = next((place.resolve() for place in places if place.is_file()), None)
            if there is not None and there not in found and there != Path(path).resolve():
                found.append(there)
                waiting.append(there)
    return sorted(found)


def is_hdf5(head: bytes) -> bool:
    """By the first 520 bytes of a file: HDF5, at its beginning or behind the 512 bytes of MATLAB's header."""
    return b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:520])


def _targets(path: Path) -> set[str]:
    """Names of other files in an HDF5 file; empty where it is none, or damaged."""
    with open(path, "rb") as handle:
        if not is_hdf5(handle.read(520)):
            return set()
    import h5py

    names: set[str] = set()

    def of_link(_: Any, link: Any) -> None:
        if isinstance(link, h5py.ExternalLink):
            names.add(os.fsdecode(link.filename))

    def of_object(_: Any, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            names.update(os.fsdecode(name) for name, *_ in item.external or ())
            if item.is_virtual:
                names.update(os.fsdecode(source.file_name) for source in item.virtual_sources())

    with contextlib.suppress(*_DAMAGE), h5py.File(path, "r") as file:
        file.visititems_links(of_link)
        file.visititems(of_object)
    return names - {"."}


def content_checksum(path: str | Path | Sequence[str | Path], others: Sequence[Path] | None = None) -> str:
    """SHA-256 of a file's content; of an HDF5 file with parts in other files, or of a list of files, of all these together.

    Args:
        others: of :func:`linked_files`, where the caller has looked; None: looked for here.
    """
    others = linked_files(path) if others is None else others
    path = path if isinstance(path, (str, Path)) else path[0]
    if not others:
        return file_checksum(path)
    whole = hashlib.sha256(file_checksum(path).encode())
    for other in others:
        whole.update(file_checksum(other).encode())
    return whole.hexdigest()
