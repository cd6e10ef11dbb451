"""A griffe extension: docstrings as Markdown, and the meaning of an option as the text of its field."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

_DECLARATIONS = {"option", "data_option", "memory_option"}


def as_markdown(text: str) -> str:
    """Roles of Sphinx and doubled backticks as code."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def meaning(value: str) -> str | None:
    """The first argument of a declaration such as option("meaning", stages=...); None of other values."""
    try:
        call = ast.parse(value, mode="eval").body
    except SyntaxError:
        return None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _DECLARATIONS):
        return None
    first = call.args[0] if call.args else None
    return first.value if isinstance(first, ast.Constant) else None


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        said = meaning(str(attr.value)) if attr.value is not None else None
        if said:
            attr.docstring, attr.value = griffe.Docstring(said, parent=attr), None
