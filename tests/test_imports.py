"""The wings of the package: imports go one way between them, and the frameworks stay at the rim.

python tests/structure.py    # rooms, floors and arrows in numbers
"""

import subprocess
import sys

import pytest
from commands import ROOT
from structure import HERE, imported, imports_of, modules, wing

# The floors of the house, from the ground up: a wing (a folder, or a module beside them) imports from lower floors only.
FLOORS = [
    {"early"},
    {"errors", "interruption", "memo", "moved", "numerics", "streams", "terminal", "units"},
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


def test_help_loads_without_torch_and_load_run_without_scikit_learn_and_scipy():
    code = "import sys, connector.__main__, connector.launch.command_line; assert 'torch' not in sys.modules; import connector; connector.load_run; assert not {'sklearn', 'scipy', 'sympy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("typed", ["--help", "sed=3", "data=npz data.path=none.npz"])
def test_what_no_run_comes_of_is_answered_without_numpy(typed):
    code = f"import sys; sys.argv[1:] = {typed.split()}; from connector.__main__ import main; code = main(); assert 'numpy._core' not in sys.modules; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (0 if typed == "--help" else 2), done.stderr


def test_numpy_is_there_for_whoever_asks_it():
    code = "import connector.launch.command_line, numpy as np, sys; from numpy import pi; assert np.pi == pi; import numpy; assert numpy is sys.modules['numpy'] and numpy.linalg.det(np.eye(2)) == 1; import torch; torch.ones(2).numpy()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
