"""Write a recording of spikes as an NWB file: connector export SESSION.mat --out FILE.nwb [--subject-id NAME ...] [data.OPTION=VALUE]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from connector.data.nwb import load_nwb
from connector.data.nwb_export import export_nwb, same_recording
from connector.data.nwb_session import NwbSession, time_of
from connector.data.readers import READERS, read_recording, source_of
from connector.declarations import declared
from connector.errors import RunFailure, UserError, exit_code
from connector.runs.naming import conf_directory
from connector.runs.options import FileData, checked_data


def file_options(path: Path, given: list[str]) -> FileData:
    """The options of the ``data=`` that reads the file: the defaults of conf/data/, changed by ``given``.

    Args:
        path: the file; its format decides which options there are.
        given: as on the command line of train.py, ``data.min_rate_hz=1``.

    Raises:
        UserError: an option that does not exist, or a value of the wrong kind.
    """
    source = source_of(path)
    wrong = [text for text in given if not text.startswith("data.") or "=" not in text]
    if wrong:
        raise UserError("options of the form data.OPTION=VALUE", wrong[0])
    files = (conf_directory() / "data" / f"{source}.yaml", conf_directory() / "folds.yaml")
    defaults = OmegaConf.merge(*map(OmegaConf.load, files))
    defaults.pop("defaults")
    try:
        changes = OmegaConf.from_dotlist(given).get("data", {})
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError("options of the form data.OPTION=VALUE", " ".join(given)) from error
    changes = {"path": str(path), **OmegaConf.to_container(OmegaConf.create(changes))}
    return checked_data({**OmegaConf.to_container(defaults), **changes})


def _export(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="connector export",
        description="Write a recording of spikes as an NWB file, which `data=nwb data.path=FILE` reads back exactly.",
    )
    parser.add_argument("recording", type=Path, help=f"a file that data=NAME reads, NAME among {', '.join(READERS)}")
    parser.add_argument("--out", type=Path, required=True, help="the NWB file to write")
    parser.add_argument("--force", action="store_true", help="replace a file of that name")
    about = parser.add_argument_group("subject and session", "for other users of the file; archives ask for them")
    for name, declared_option, kind in declared(NwbSession):
        several = {"nargs": "+"} if get_origin(kind) is tuple else {}
        flag = f"--{name.replace('_', '-')}"
        typed = time_of if name == "session_start" else str
        about.add_argument(flag, type=typed, help=declared_option.meaning, metavar="X", **several)
    parser.add_argument(
        "options",
        nargs="*",
        help="options of the reader as in train.py, such as data.min_rate_hz=1",
        metavar="data.X=Y",
    )
    given = parser.parse_intermixed_args(arguments)
    options = file_options(given.recording, given.options)
    if given.out.resolve() == given.recording.resolve():
        raise UserError("--out naming another file than the recording", str(given.out))
    if given.out.exists() and not given.force:
        raise UserError("--out naming a file that is not there yet", str(given.out), "--force replaces it")
    said = {name: getattr(given, name) for name, _, _ in declared(NwbSession) if getattr(given, name) is not None}
    session = NwbSession(**{name: tuple(x) if isinstance(x, list) else x for name, x in said.items()})
    session.of_file()
    recording = read_recording(given.recording, options.source, **options.reading())
    export_nwb(recording, given.out, session=session, max_gigabytes=options.max_gigabytes)
    lost = same_recording(recording, load_nwb(given.out))
    if lost:
        raise RunFailure("export", f"{given.out} does not read back the same: {', '.join(lost)} differ", "")
    spikes = int(recording.activity.sum())
    print(
        f"{given.out}: {recording.n_trials} trials, {recording.n_neurons} units, {spikes} spikes; reads back the same"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Export as the command line says; returns the exit code, 2 for mistakes the user can mend."""
    return exit_code(_export, arguments)


if __name__ == "__main__":
    sys.exit(main())
