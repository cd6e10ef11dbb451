"""What a result was made with: the command, versions of Python and packages, the state of the code, the data."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

_PACKAGES = (
    "torch", "pytorch-lightning", "hydra-core", "omegaconf", "numpy", "scipy", "scikit-learn", "torchdiffeq", "matplotlib",
    "wandb",
)  # fmt: skip
_ROOT = Path(__file__).resolve().parents[2]


def command() -> str:
    """The command line of this process, as a shell takes it."""
    name = Path(sys.argv[0]).name
    entry = (
        ["python", "-m", "connector"] if name == "__main__.py" else ["python", name] if name.endswith(".py") else [name]
    )
    return shlex.join([*entry, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that results depend on."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@lru_cache
def git_state(root: Path = _ROOT) -> dict[str, Any] | None:
    """Commit of the code, or of another checkout, and whether files that it tracks differ from it; None where there is no repository."""
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        asked = ["git", "-C", str(root), *arguments]
        return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):  # no git, or a repository of another user
        return None


def tensor_checksum(x: Tensor) -> str:
    """SHA-256 of the numbers of a tensor, in its own precision."""
    return hashlib.sha256(x.detach().cpu().contiguous().numpy().data).hexdigest()
