"""The wings of the package: imports go one way between them, and the frameworks stay at the rim.

python tests/structure.py    # rooms, floors and arrows in numbers
"""

import subprocess
import sys

from commands import ROOT
from structure import HERE, imported, imports_of, modules, wing

# The floors of the house, from the ground up: a wing (a folder, or a module beside them) imports from lower floors only.
FLOORS = [
    {"early"},
    {"errors", "interruption", "moved", "numerics", "streams", "terminal", "units"},
    {"declarations", "files", "types"},
    {"dynamics", "figures", "report"},
    {"shooting"},
    {"data"},
    {"lrrnn"},
    {"connectivity"},
    {"analysis"},
    {"runs"},
    {"stages"},
    {"compare", "export", "launch", "look", "sample", "score"},
    {"plugins", "__main__"},
]
AT_THE_RIM = {  # a framework: where it may be imported, as folders or modules
    "pytorch_lightning": ("data.modules", "stages", "launch"),
    "lightning_fabric": ("launch.distributed",),
    "hydra": ("launch", "plugins"),
    "wandb": ("launch.wandb_run",),
}


def test_every_wing_has_its_floor():
    floors = [name for floor in FLOORS for name in floor]
    assert sorted(floors) == sorted({wing(name) for name, _ in modules(HERE) if name})


def test_wings_import_only_from_lower_floors():
    level = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    wrong = [
        f"{name} imports {target}"
        for name, target in imports_of(HERE)
        if wing(name) != wing(target) and level[wing(target)] >= level[wing(name)]
    ]
    assert not wrong


def test_modules_of_a_wing_do_not_import_one_another_in_circles():
    above = {}
    for name, target in imports_of(HERE):
        above.setdefault(name, set()).add(target)

    def reaches(start, goal, seen):
        return any(
            step == goal or (step not in seen and (seen.add(step) or reaches(step, goal, seen)))
            for step in above.get(start, ())
        )

    assert not [name for name in above if reaches(name, name, set())]


def test_frameworks_are_imported_at_the_rim_only():
    wrong = [
        f"{name} imports {target}"
        for name, path in modules(HERE)
        for target in imported(path)
        for framework, allowed in AT_THE_RIM.items()
        if target.split(".")[0] == framework and not any(name == x or name.startswith(x + ".") for x in allowed)
    ]
    assert not wrong


def test_help_loads_without_torch_and_load_run_without_scikit_learn():
    code = "import sys, connector.__main__, connector.launch.command_line; assert 'torch' not in sys.modules; import connector; connector.load_run; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
