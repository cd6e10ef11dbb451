"""Bad input never hurts: damaged files and mistaken options of one seed; thousands more with `make fuzz`."""

import re

import fuzz
import h5py
import numpy as np
import pytest

from connector.data.nwb import load_nwb


def failures(cases):
    done = list(fuzz.outcomes(cases, seed=11))
    assert len(done) == len(cases)
    return done, [f"{x.group}, case {x.number} ({x.kind}): {x.why}" for x in done if x.became == "failed"]


def test_damaged_files_are_read_right_or_refused():
    done, wrong = failures([(fuzz.one_file, i) for i in range(150)])
    assert not wrong
    assert {x.group for x in done} == set(fuzz.READERS)
    # Neither does everything pass nor is everything refused.
    became = [x.became for x in done]
    assert became.count("read") > 25
    assert became.count("refused") > 60


def test_mistaken_options_are_refused_in_two_lines():
    # One value of the wrong kind for every sixth option, then odd ones of all kinds.
    total = len(fuzz.option_types())
    done, wrong = failures([(fuzz.one_command, i) for i in [*range(0, total, 6), *range(total, total + 15)]])
    assert not wrong
    assert all(x.became == "refused" for x in done if x.kind == "wrong kind")


def test_every_option_is_given_a_value_of_the_wrong_kind():
    types = fuzz.option_types()
    hit = {fuzz.mistaken(i, np.random.default_rng(0))[0][-1].partition("=")[0] for i in range(len(types))}
    assert hit == {name for name, _, _ in types}


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: fuzz.promise(False, "counts"), "Broken: counts"),
        (lambda: fuzz.refused_in_lines(1, "Traceback"), "exit code"),
        (lambda: fuzz.refused_in_lines(2, "a\nb\nc"), "short message"),
    ],
)
def test_what_must_not_happen_is_a_failure(act, why):
    outcome = fuzz.judged(0, "npz", "values", act)
    assert outcome.became == "failed"
    assert re.search(why, outcome.why)


def test_a_text_that_declares_a_gigabyte_takes_none(tmp_path):
    """HDF5 makes room for what a text's length says before it looks for the text; nothing but a limit can keep it from that."""
    fuzz.write_whole(tmp_path)
    path = tmp_path / "exported.nwb"
    with h5py.File(path) as file:
        place = file["session_description"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[place + 3] = 0x50  # the highest byte of the length
    path.write_bytes(content)
    outcome = fuzz.judged(0, "nwb", "declared", lambda: load_nwb(path, max_gigabytes=fuzz.LIMIT_GB))
    assert outcome.became == "refused", outcome.why
    assert outcome.memory_gb < fuzz.MEMORY_GB
