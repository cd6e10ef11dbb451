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


def declaration(value: object) -> tuple[str, str] | None:
    """Meaning and default of a declaration such as option("meaning", default=1); None of other values."""
    try:
        call = ast.parse(str(value), mode="eval").body
    except SyntaxError:
        return None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _DECLARATIONS):
        return None
    first = call.args[0] if call.args else None
    default = next((ast.unparse(k.value) for k in call.keywords if k.arg == "default"), "...")
    return (first.value, default) if isinstance(first, ast.Constant) else None


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if found := declaration(attr.value):
            attr.docstring, attr.value = griffe.Docstring(found[0], parent=attr), None

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        made = cls.members.get("__init__")  # of a dataclass
        for parameter in made.parameters if isinstance(made, griffe.Function) else []:
            if found := declaration(parameter.default):
                parameter.default = found[1]
