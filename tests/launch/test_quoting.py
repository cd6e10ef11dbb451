"""An option that Hydra's grammar does not take is refused with how to type it; typed so, it is taken as it was meant."""

import shlex

import pytest
from commands import typed
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from connector.launch.command_line import refused_override

PLAIN = [" ", "-", "+", "@", "%", ".", ":", "$", "*", "?", "\\"]
SIGNS = [
    "=",
    "~",
    "&",
    ",",
    "#",
    "!",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "'",
    '"',
    "é",
    "世",
    '\\"',
    "a (b) [c] {d}, e=f#",
    "\\é\\",
    "(${x}",
]


def value_of(argument):
    """What a run gets of an option that is typed."""
    (override,) = OverridesParser.create().parse_overrides([argument])
    if override.is_sweep_override():
        raise OverrideParseException(argument, f"Ambiguous value for argument '{argument}'")
    return OmegaConf.create({"path": override.value()}).path


@pytest.mark.parametrize("sign", SIGNS)
def test_the_remedy_for_a_path_with_signs_of_the_grammar_works(sign):
    for path in (f"/folder/x{sign}", f"{sign}y.npz"):
        with pytest.raises(OverrideParseException) as found:
            value_of(f"data.path={path}")
        first, remedy = refused_override(found.value).splitlines()
        assert first.startswith("expected data.path with a value that Hydra can read; got ")
        command = remedy.removesuffix(".").partition(": as ")[2].partition("; several values in a sweep with -m")[0]
        (argument,) = shlex.split(command)
        assert value_of(argument) == path


def test_what_needs_no_quotes_is_taken_as_it_is():
    for sign in PLAIN:
        assert value_of(f"data.path=x{sign}y") == f"x{sign}y"


def test_the_command_line_says_it(tmp_path):
    done = typed("data=npz", f"data.path={tmp_path}/a,b.npz", cwd=tmp_path)
    assert done.returncode == 2
    assert f"""as 'data.path="{tmp_path}/a,b.npz"'; several values in a sweep with -m.""" in done.stderr
    done = typed("data=npz", f'data.path="{tmp_path}/a,b.npz"', cwd=tmp_path)
    assert done.stderr.startswith(f"Error: expected a file to read; got no file {tmp_path}/a,b.npz.")
    done = typed("data=npz", f"data.path={tmp_path}/${{x}}.npz", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[1] == "Where ${...} names no option but stands in a text itself, write \\${...}."
    done = typed("data=npz", f"data.path={tmp_path}/\\${{x}}.npz", cwd=tmp_path)
    assert f"no file {tmp_path}/${{x}}.npz" in done.stderr
    assert not list(tmp_path.iterdir())
