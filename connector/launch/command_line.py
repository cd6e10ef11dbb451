"""The command line of a run: compose a configuration, check it, run the job. Needs no torch to answer --help.

`python train.py --help` lists the options.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import logging
import os
import re
import shlex
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

# Hydra's own reporting hides the exception from this file and always ends with 1; here mistakes end with 2.
os.environ["HYDRA_FULL_ERROR"] = "1"
# Threads that wait for each other by spinning lose several-fold as soon as anything else runs on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Left alone, MKL takes fewer threads when the machine is busy and other paths for memory aligned otherwise: the sums
# then differ in their last digits, and two runs of one seed with them.
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
os.environ.setdefault("MKL_CBWR", "AUTO")

# Hydra finds launchers in packages named hydra_plugins on the path.
sys.path.append(str(Path(__file__).resolve().parents[1] / "plugins"))

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationKeyError, OmegaConfBaseException

from connector import early, interruption
from connector.errors import RunFailure, UserError, unwritable
from connector.launch import composing  # noqa: F401  (makes Hydra faster, and numpy late)
from connector.launch.ranks import require_numbers
from connector.launch.sweep import Refused, abandon_sweep, close_sweep, optimizes, sweep_directory
from connector.runs.naming import conf_directory, register_resolvers, stands_for

register_resolvers()


def _option_table(*, _root_: DictConfig) -> str:
    from connector.runs.describe import option_table

    return option_table(_root_).replace("$", "$$")  # Hydra fills in a template of Python's


OmegaConf.register_new_resolver("option_table", _option_table, replace=True)


def _remove_if_empty(directory: Path) -> None:
    """A refused job leaves no directory behind: neither its own nor, where they are empty, those it lies in."""
    here = Path.cwd()
    inside = [path for path in directory.parents if here in path.parents]
    for path in (directory, *(inside or [directory.parent])):
        with contextlib.suppress(OSError):
            path.rmdir()


# Whatever a user adds there is new to Hydra, which would ask for a plus before it.
_OPEN_GROUPS = re.compile(r"^((trainer\.extra|callbacks)\.(?=[^=]+=)|logger\._target_=)")

# What a single run raised. Hydra prints a traceback of whatever leaves a job, so that in a single run the exception
# waits here; in a sweep it has to leave, for the launchers and sweepers to know that the job failed.
_raised: list[BaseException] = []
# Directories of the jobs reached: what is raised before the first concerns the command line and the configuration files.
_directories: list[Path] = []


def _name_of(settings: DictConfig, key: str) -> str | None:
    """What the directory's name stands for, where it is the one made from the options."""
    group, option = key.split(".")
    made = "_directory:" in str(OmegaConf.to_container(settings, resolve=False)[group][option])
    return stands_for(settings.runtime.choices, settings.overrides.task) if made else None


def _reports(sweeper: DictConfig) -> list[Any]:
    """For a job of a study that watches a loss: the callback that reports it."""
    if sweeper.get("monitor") is None or sweeper.get("trial") is None:
        return []
    from connector.launch.pruning import Reports

    return [Reports(sweeper)]


def job(config: DictConfig, data: Any = None) -> float | None:
    """One job: a single run, or one of a sweep, whose data a launcher may have read. Returns the value that an optimizing
    sweeper minimises."""
    settings = HydraConfig.get()
    directory = Path(settings.runtime.output_dir)
    _directories.append(directory)
    sweep = settings.mode == RunMode.MULTIRUN
    if settings.verbose:  # Hydra sets the levels; its own handlers are switched off in conf/train.yaml
        logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        early.undo(lambda: abandon_sweep() if sweep else _remove_if_empty(directory))
        # Imported here: --help, --cfg, refused options and files that are not there answer without waiting for torch.
        from connector.runs.options import FileData, checked

        options = checked(config)
        if isinstance(options.data, FileData):
            options.data.require_file()
        require_numbers()
        from connector.launch import finished

        metrics = finished.answered(options, directory, alone=not sweep) if data is None else None
        if metrics is not None:
            return finished.objective(metrics)
        from connector.launch.job import run

        interruption.imported()
        # Modules are never garbage, and to look through them takes half a second each time.
        if not gc.get_freeze_count():
            gc.freeze()

        if options.trainer.extra.get("fast_dev_run"):
            run(options, config, directory)
            return _remove_if_empty(directory)
        if not sweep:
            return run(options, config, directory, name=_name_of(settings, "run.dir"))
        name, number = Path(settings.sweep.dir).name, int(settings.job.num)
        stands = _name_of(settings, "sweep.subdir")
        reached = run(options, config, directory, name, number, data, stands, _reports(settings.sweeper))
        if reached is None and optimizes(settings.sweeper.get("_target_")):
            remedy = "let each job of a study run all stages on enough trials to measure the field error"
            raise UserError("a measure for the study to minimise", f"none in {directory / 'metrics.json'}", remedy)
        return reached
    except Exception as error:
        if isinstance(error, UserError):
            _remove_if_empty(directory)
        if sweep:
            raise
        _raised.append(error)
        return None


def _said_to_go_on() -> str:
    """How to go on after an interruption."""
    sweep = sweep_directory()
    if sweep is not None:
        return f"the same command with hydra.sweep.dir={sweep} runs what is missing; finished jobs and checkpoints are kept."
    return f"{interruption.goes_on(_directories[-1])}." if _directories else "nothing was started yet."


def refused_override(error: Exception) -> str:
    """What Hydra or OmegaConf refused, in one or two lines with what to do."""
    cause = error.__cause__
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and cause.full_key:
        from connector.runs.options import unknown_option

        if re.match(r"trainer\.(?!extra$)", cause.full_key):
            from connector.stages.training import misplaced_argument

            name = cause.full_key.removeprefix("trainer.").removeprefix("extra.")
            remedy = (
                f"an argument of Lightning's Trainer is added as trainer.extra.{name}=VALUE or +trainer.{name}=VALUE"
            )
            return str(misplaced_argument(name) or UserError("an option of Connector's own", cause.full_key, remedy))
        return str(unknown_option(cause.full_key))
    if isinstance(error, MissingConfigException) and error.options:
        # experiment/nope; the group of hydra's own choices keeps its slash: hydra/launcher/nope
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        near = difflib.get_close_matches(name, error.options, n=1)
        remedy = f"the nearest is {group}={near[0]}" if near else f"choose one with {group}=NAME"
        return str(UserError(f"{group} among {', '.join(error.options)}", repr(name), remedy))
    ambiguous = re.match(r"Ambiguous value for argument '(.*)'$", str(error).partition("\n")[0])
    if ambiguous or (isinstance(error, OverrideParseException) and "=" in (error.override or "")):
        return str(_unquoted(ambiguous[1] if ambiguous else error.override))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, InterpolationKeyError):
        return f"{lines[0]} ({error.full_key}).\nWhere ${{...}} names no option but stands in a text itself, write \\${{...}}."
    if isinstance(cause, OmegaConfBaseException):
        lines = [lines[0], *str(cause).splitlines()[:1]]
    return "\n".join(lines[:2])


def _unquoted(override: str) -> UserError:
    """An option that Hydra's grammar does not take as it is: with how it is typed in a shell if its value is a text."""
    key, _, value = override.partition("=")
    inner = re.sub(r'(\\*)"', r'\1\1\\"', value).replace("${", "\\${")
    inner += re.search(r"\\*$", inner)[0]  # backslashes at the end would hide the quote
    typed = shlex.quote(key + '="' + inner + '"')
    sweep = "; several values in a sweep with -m" if "," in value else ""
    remedy = f"a text with signs of its grammar, or beyond ASCII, stands in double quotes within single ones: as {typed}{sweep}"
    return UserError(f"{key} with a value that Hydra can read", _shortened(value), remedy)


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:60]}...{text[-30:]}"


def _uncomposed(error: Exception) -> Exception:
    """YAML that cannot be parsed, text in another encoding, a directory that cannot be made: Hydra has no class for these."""
    if isinstance(error, OSError):
        option = "hydra.sweep.dir=DIR" if sweep_directory() else "hydra.run.dir=DIR"
        told = unwritable(error, option)
        if told is not None:
            return told
    where = getattr(error, "problem_mark", None)
    reason = " ".join(str(getattr(error, "problem", None) or error).split())[:300]
    place = f" in {where.name}, line {where.line + 1}" if where is not None else ""
    return UserError("options and configuration files that can be read", f"{type(error).__name__}: {reason}{place}")


def main() -> int:
    """Run the command line; returns the exit code: 0 done, 2 a mistake the user can mend, 130 Ctrl-C, 143 SIGTERM, 1 anything
    else."""
    interruption.belong_to_parent()
    sys.argv[1:] = [_OPEN_GROUPS.sub(r"++\g<0>", argument) for argument in sys.argv[1:]]
    sweep = any(flag in ("-m", "--multirun") for flag in sys.argv[1:])
    code = 1
    try:
        code = _run_jobs(sweep)
    finally:
        failed = _closed_sweep(code == 0)
    # A sweeper may go on past jobs that failed, as a study does.
    return code or int(failed)


def _closed_sweep(well: bool) -> bool:
    """Whether a job failed of the sweep that this process started, or its table cannot be written; ``well``: till now."""
    try:
        return close_sweep()
    except (OSError, UserError) as error:
        if well:  # else what is wrong has been said
            print(f"Error: {error if isinstance(error, UserError) else _unexpected(error)}", file=sys.stderr)
        return True


def _run_jobs(sweep: bool) -> int:
    try:
        hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name="train")(job)()
        if _raised:
            raise _raised[0]
    except Refused as refused:
        print(f"Error: {refused.error}", file=sys.stderr)
        return 2 if isinstance(refused.error, UserError) else 1
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1 if sweep else 2
    except (CompactHydraException, OmegaConfBaseException) as error:
        print("Error: " + refused_override(error), file=sys.stderr)
        return 2
    except RunFailure as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Interrupted; {_said_to_go_on()}", file=sys.stderr)
        return 130
    except SystemExit as left:
        if left.code != interruption.EXIT_CODE:
            raise
        print(f"Terminated; {_said_to_go_on()}", file=sys.stderr)
        return interruption.EXIT_CODE
    except Exception as error:
        said = _uncomposed(error) if not _directories else _unexpected(error)
        print(f"Error: {said}", file=sys.stderr)
        return 2 if isinstance(said, UserError) else 1
    return 0


def _unexpected(error: Exception) -> Exception:
    """What to say of an exception that no one has expected, with the file that its traceback is in."""
    if isinstance(error, OSError) and (told := unwritable(error, "hydra.run.dir=DIR or hydra.sweep.dir=DIR")):
        return told
    reason = (str(error).strip().splitlines() or ["no message"])[0][:200].rstrip(".")
    remedy = "please report it, this is a fault of the program"
    with contextlib.suppress(OSError):
        descriptor, name = tempfile.mkstemp(prefix="connector-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(traceback.format_exception(error))
        remedy = f"{name} has the traceback; {remedy}"
    return RunFailure("the run", f"{type(error).__name__}: {reason}", remedy)
