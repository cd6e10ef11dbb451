"""The structure of the package in numbers: rooms, floors, arrows, the longest file and function, lines.

python tests/structure.py             # the package of this checkout
python tests/structure.py DIRECTORY   # that of another one

A room is a wing: a folder of the package, or a module beside the folders. An arrow says that a room imports from
another. The floors are counted from the ground: a room stands one above the highest of those it imports from.
"""

import ast
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent / "connector"


def modules(package):
    """(name, file) of each module below ``package``; a folder's `__init__` has the folder's name, the face none."""
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path):
    """All names that a file imports, at any depth, as absolute dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(package):
    """Pairs (module, module it imports) within the package, but for its face, which names what lies everywhere."""
    known = {name for name, _ in modules(package)}
    for name, path in modules(package):
        for target in imported(path) if name else ():
            inner = target.removeprefix("connector.")
            if target.startswith("connector.") and inner in known and inner != name:
                yield name, inner


def wing(module):
    return module.split(".")[0]


def arrows(package):
    """Pairs of different wings of which the first imports from the second."""
    return {(wing(a), wing(b)) for a, b in imports_of(package) if wing(a) != wing(b)}


def floor_of(room, below, above=()):
    """Height of a room over the ground, 0 where it imports nothing. Rooms that import each other count once."""
    return max((1 + floor_of(x, below, (*above, room)) for x in below.get(room, ()) if x not in above), default=0)


def functions(package):
    """(lines, positional arguments, all arguments, where) of every function, less self and cls."""
    for _, path in modules(package):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                positional = [a for a in node.args.posonlyargs + node.args.args if a.arg not in ("self", "cls")]
                size = node.end_lineno - node.lineno + 1
                where = f"{path.relative_to(package)}:{node.lineno} {node.name}"
                yield size, len(positional), len(positional) + len(node.args.kwonlyargs), where


def lengths(package):
    """(lines, file) of every file of the package."""
    return [(len(path.read_text().splitlines()), str(path.relative_to(package))) for _, path in modules(package)]


def main(package):
    between, below = arrows(package), {}
    for room, other in between:
        below.setdefault(room, set()).add(other)
    rooms = {wing(name) for name, _ in modules(package) if name}
    files, found = lengths(package), list(functions(package))
    print(f"rooms             {len(rooms)}")
    print(f"floors            {1 + max(floor_of(room, below) for room in rooms)}")
    print(
        f"arrows            {len(between)} between rooms, {sum((b, a) in between for a, b in between) // 2} both ways"
    )
    print("longest file      {} lines: {}".format(*max(files)))
    print("longest function  {} lines: {}".format(*max((x[0], x[3]) for x in found)))
    print("most arguments    {}: {}".format(*max((x[2], x[3]) for x in found)))
    print(f"lines             {sum(size for size, _ in files)} in {len(files)} files")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "connector" if len(sys.argv) > 1 else HERE)
