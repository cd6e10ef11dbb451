"""One file or several, whose arrays are found by `KEY`, or by `FILE:KEY`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from connector.data.contents import Contents, opened
from connector.errors import UserError


class Sources(contextlib.ExitStack):
    """The contents of the files, open within a ``with`` block.

    In `FILE:KEY`, FILE is a file's path, its name, or its name without the ending; `FILE:` is left out where one file alone
    has the key.
    """

    def __init__(self, paths: Sequence[Path], max_gigabytes: float):
        super().__init__()
        self.paths, self.max_gigabytes, self.files = list(paths), max_gigabytes, []

    def __enter__(self) -> Sources:
        super().__enter__()
        self.files = [self.enter_context(opened(path, self.max_gigabytes)) for path in self.paths]
        return self

    def value(self, key: str) -> tuple[Any, Contents]:
        """What a key names (:meth:`Contents.value`), and the file that it is in.

        Raises:
            UserError: none of the files has the key, or several have.
        """
        label, colon, rest = key.rpartition(":")
        named = (
            [file for file in self.files if label in (str(file.path), file.path.name, file.path.stem)] if colon else []
        )
        if len(named) == 1:
            return named[0].value(rest), named[0]
        found, refused = [], []
        for file in self.files:
            try:
                found.append((file.value(key), file))
            except UserError as error:
                refused.append(error)
        if len(found) == 1:
            return found[0]
        if len(self.files) == 1:
            raise refused[0]
        names = ", ".join(file.path.name for file in self.files)
        got = f"{len(found)} that have it" if found else f"none ({refused[0].got}; {refused[0].remedy})"
        raise UserError(f"the key {key} in one of {names}", got, "name the file, too: FILE:KEY")
