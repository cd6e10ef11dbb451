"""Accidents of every kind end with the right exit code and at most two lines, never with a traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import CONF, ROOT, typed
from hydra import compose, initialize_config_dir

from connector import sample
from connector.compare import main as compare
from connector.errors import RunFailure, UserError, exit_code, explain
from connector.files import write_npz, write_text
from connector.launch.job import guarded, logging_to
from connector.runs.naming import register_resolvers
from connector.runs.options import checked
from connector.stages.training import check_trainer

register_resolvers()
RUN = Path(__file__).parent.parent / "fixtures" / "run_v1"


def options_of(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose("train", [*overrides, "experiment_name=test"]))


def in_two_lines(code, said, expected=2):
    assert code == expected, said
    assert "Traceback" not in said
    assert said.startswith("Error: ")
    assert 0 < len(said.strip().splitlines()) <= 2
    return said


def command(*arguments, cwd=ROOT, **environment):
    """train.py as a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


# --- places that cannot be written to ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE])
def test_a_run_directory_that_cannot_be_written_to(code, tmp_path):
    error = OSError(code, os.strerror(code), str(tmp_path / "manifest.json"))
    said = explain(error, "start", tmp_path)
    assert isinstance(said, UserError)
    assert str(said).splitlines()[1] == "Choose another with hydra.run.dir=DIR."
    said = explain(error, "loadings", tmp_path)
    assert isinstance(said, RunFailure)
    assert f"loadings stopped: {tmp_path}/manifest.json cannot be written ({os.strerror(code)})." in str(said)
    assert "fault of the program" not in str(said)
    elsewhere = OSError(code, os.strerror(code), "/somewhere/else")  # no word on the run directory
    assert "fault of the program" in str(explain(elsewhere, "loadings", tmp_path))


def test_a_run_directory_that_is_gone(tmp_path):
    gone = tmp_path / "run"
    said = explain(FileNotFoundError(errno.ENOENT, "No such file or directory", str(gone / "x")), "outputs", gone)
    assert str(said) == f"outputs stopped: the run directory {gone} is gone.\nRun the same command to make it again."


def test_a_directory_that_becomes_read_only_loses_neither_the_error_nor_the_lock(tmp_path, monkeypatch):
    """The lock's file cannot be removed, the log not be opened: what happened in the block is what is raised."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(KeyError, match="of the job"), guarded(tmp_path), logging_to(tmp_path) as say:  # noqa: PT012
        monkeypatch.setattr(Path, "unlink", refuse)
        monkeypatch.setattr("logging.FileHandler._open", refuse)
        say("a line")
        raise KeyError("of the job")


@pytest.mark.parametrize("kind", ["below a file", "too long", "of others"])
def test_a_place_that_is_none_is_named_with_the_option(kind, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    place = {"below a file": tmp_path / "file" / "x", "too long": tmp_path / ("x" * 300), "of others": tmp_path / "no"}[
        kind
    ]
    if kind == "of others":  # root may write anywhere
        made = Path.mkdir

        def mkdir(path, *arguments, **keywords):
            if path.name in ("no", "run"):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            made(path, *arguments, **keywords)

        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(os, "makedirs", lambda path, *_, **__: mkdir(Path(path)))
    done = typed("data.n_neurons=20", f"hydra.run.dir={place / 'run'}", cwd=tmp_path)
    assert "choose another with hydra.run.dir=DIR" in in_two_lines(done.returncode, done.stderr).lower().replace(
        "dir=dir", "dir=DIR"
    )
    done = typed("-m", "seed=1,2", "data.n_neurons=20", f"hydra.sweep.dir={place}", cwd=tmp_path)
    assert "hydra.sweep.dir=DIR" in in_two_lines(done.returncode, done.stderr)
    for main, more in ((sample.main, ["--neurons", "3"]), (compare, [])):
        code = main([str(RUN), *more, "--out", str(place / "x.npz")])
        assert "--out" in in_two_lines(code, capsys.readouterr().err)


def test_a_full_disk_and_ctrl_c_of_a_script(tmp_path, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code = exit_code(lambda _: write_text(tmp_path / "a.csv", "a"))
    assert f"no space is left for {tmp_path}/a.csv" in in_two_lines(code, capsys.readouterr().err, 1)
    assert not list(tmp_path.iterdir())

    def interrupted(_):
        raise KeyboardInterrupt

    assert exit_code(interrupted) == 130
    assert capsys.readouterr().err == "Interrupted; files are written whole or not at all.\n"
    with pytest.raises(OSError, match="socket"):  # no file: nothing that another place would mend
        exit_code(lambda _: (_ for _ in ()).throw(OSError(errno.ECONNREFUSED, "socket")))


def test_names_as_long_as_the_file_system_takes(tmp_path):
    for name in ("x" * 251 + ".npz", "é" * 125 + ".npz"):
        write_npz(tmp_path / name, {"a": np.ones(2)})
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_brackets_in_paths_are_printed_as_they_are(tmp_path):
    directory, rng = tmp_path / "[red]a[/b]" / "[x]", np.random.default_rng(0)
    np.savez(tmp_path / "[bold]x[b].npz", rates=np.tanh(rng.normal(size=(6, 9, 2)) @ rng.normal(size=(2, 4))))
    path = f'data.path="{tmp_path}/[bold]x[b].npz"'
    quick = ["stages=[lrrnn]", "lrrnn.max_epochs=1", "report=false"]
    done = typed("data=npz", path, *quick, f'hydra.run.dir="{directory}"', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[bold]x[b]: firing rates of 4 neurons" in done.stdout
    assert (directory / "latents.npz").exists()


# --- the process itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["hydra", "torch"])
@pytest.mark.parametrize(("sent", "code", "word"), [("SIGINT", 130, "Interrupted"), ("SIGTERM", 143, "Terminated")])
def test_signals_while_modules_are_imported(tmp_path, module, sent, code, word):
    """A module that sends the signal stands in for the real one, and takes every exception as imports may."""
    text = f"import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.{sent})\n    time.sleep(5)\nexcept BaseException:\n    pass\n"
    (tmp_path / f"{module}.py").write_text(text)
    done = command("hydra.run.dir=run", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == code
    assert done.stderr == f"{word}; nothing was started yet.\n"
    assert not (tmp_path / "run").exists()


def test_ctrl_c_that_is_to_be_ignored_is_ignored():
    """As a shell has it for what it starts with & or nohup."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom connector import early; early.install()\n"
    code += "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\nearly.give_way()\n"
    code += "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("given", [["data=npz", "data.path=nope.npz"], ["data=nwb", "data.path=a.npz"]])
def test_a_file_that_is_not_there_or_of_another_kind_is_refused_before_torch_is_loaded(tmp_path, given):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was loaded')\n")
    np.savez(tmp_path / "a.npz", rates=np.ones((2, 3, 4)))
    done = command(*given, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    in_two_lines(done.returncode, done.stderr)
    assert not (tmp_path / "runs").exists()


def test_standard_output_closed_full_or_left(tmp_path):
    (tmp_path / "prints.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom connector import streams\nstreams.prepare()\n"
        "for _ in range(3): print('x' * 100_000)\nprint('end', file=sys.stderr)\nassert open('kept', 'w').fileno() > 2\n"
    )

    def shell(text):
        text = text.replace("prints", f"{sys.executable} prints.py")
        return subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=60, cwd=tmp_path)

    for text in ("prints >&-", "prints >&- <&-", "prints | head -c 5 > /dev/null; exit ${PIPESTATUS[0]}"):
        done = shell(text)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "end\n"), text
    assert shell("prints 2>&-").stdout == 3 * ("x" * 100_000 + "\n")
    assert shell("prints >&- 2>&- <&-").returncode == 0
    if Path("/dev/full").exists():
        done = shell("prints > /dev/full")
        said = (
            "Standard output can no longer be written (No space left on device); the run continues without it.\nend\n"
        )
        assert (done.returncode, done.stderr) == (0, said)
        assert shell("prints 2> /dev/full").returncode == 0
    done = shell(f"{sys.executable} {ROOT / 'train.py'} seed=x hydra.run.dir={tmp_path}/run >&- 2>&- <&-")
    assert done.returncode == 2


def test_an_ascii_locale(tmp_path):
    narrow = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    done = command("data=npz", 'data.path="/nowhere/é世.npz"', cwd=tmp_path, **narrow)
    assert "no file /nowhere/" in in_two_lines(done.returncode, done.stderr)


def test_a_working_directory_that_is_gone(tmp_path):
    text = f"mkdir x; cd x; rmdir ../x; {sys.executable} {ROOT / 'train.py'} hydra.run.dir={tmp_path}/run"
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert "a working directory that is there" in in_two_lines(done.returncode, done.stderr)


def test_several_computers_need_to_be_told_of_each_other(monkeypatch):
    for name in ("MASTER_ADDR", "NODE_RANK", "GROUP_RANK", "SLURM_NTASKS", "SLURM_JOB_NAME", "LSB_JOBID"):
        monkeypatch.delenv(name, raising=False)
    for more in ([], ["trainer=ddp"], ["trainer.devices=2"]):
        with pytest.raises(UserError, match="would wait for the others"):
            check_trainer(options_of("trainer.num_nodes=2", *more).trainer)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("NODE_RANK", "0")
    assert check_trainer(options_of("trainer.num_nodes=2").trainer)["processes"] == 2
