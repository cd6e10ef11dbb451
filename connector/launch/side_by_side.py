"""Calls side by side, in processes of their own: the loss of one costs its call and no other, and none outlives this one.

A process that has ended its call takes the next; one that is killed, or leaves, is replaced.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

from connector import interruption
from connector.errors import RunFailure, process_end

try:  # of joblib, which had it within itself before 1.6
    import cloudpickle
except ImportError:
    from joblib.externals import cloudpickle

_CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks, and the GPU's state
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_FAREWELL_S = 1.0  # in which a process ends by itself after Ctrl-C, which all processes of a terminal are given
_GRACE_S = interruption.GRACE_S + 5.0


def cpu_count() -> int:
    """Cores that this process may use."""
    from joblib import cpu_count as found  # not in the processes: they would wait for it

    return found()


def number_of(n_jobs: int) -> int:
    """Processes for ``n_jobs``: as joblib has it, -1 is one for each core, -2 one less."""
    return n_jobs if n_jobs > 0 else max(1, cpu_count() + 1 + n_jobs)


def side_by_side(n: int, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of the calls, in their order, ``n`` of which run at a time.

    Returns:
        in the place of a call whose process was lost, a RunFailure that says how it ended. What a call raises, ends its
        process: have it returned.
    """
    waiting, results, idle, busy = deque(enumerate(calls)), {}, [], {}
    try:
        while waiting or busy:
            while waiting and len(busy) < n:
                worker = idle.pop() if idle else _Worker(n)
                number, call = waiting.popleft()
                busy[worker.pipe] = worker, number
                worker.give(call)
            for pipe in connection.wait(list(busy)):
                worker, number = busy.pop(pipe)
                try:
                    results[number] = cloudpickle.loads(pipe.recv_bytes())
                    idle.append(worker)
                except (EOFError, OSError):
                    results[number] = worker.loss(number)
    finally:
        _end([*idle, *(worker for worker, _ in busy.values())], at_once=not busy)
    return [results[number] for number in range(len(calls))]


class _Worker:
    def __init__(self, n: int):
        self.pipe, theirs = _CONTEXT.Pipe()
        with _threads(max(1, cpu_count() // n)):
            self.process = _CONTEXT.Process(target=_serve, args=(theirs, os.getpid()))
            self.process.start()
        theirs.close()

    def give(self, call: Callable[[], Any]) -> None:
        with contextlib.suppress(OSError):  # it is gone: seen when its result is waited for
            self.pipe.send_bytes(cloudpickle.dumps(call))

    def loss(self, number: int) -> RunFailure:
        self.process.join()
        what = f"its process ended before it had done ({process_end(self.process.exitcode)}); other jobs continue"
        remedy = "run the same command in the same directory to resume; memory may have run out"
        return RunFailure(f"job {number + 1}", what, remedy)


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """In the environment that a process started within finds, as joblib has it: no more threads than there are cores."""
    added = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, str(number)))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _serve(pipe: connection.Connection, parent: int) -> None:
    """Make one call after the other until there are none."""
    interruption.end_with(parent)
    interruption.install()
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            result = cloudpickle.loads(pipe.recv_bytes())()
            pipe.send_bytes(cloudpickle.dumps(result))


def _end(workers: list[_Worker], at_once: bool) -> None:
    """Where calls are left (Ctrl-C, SIGTERM) they are given time to keep what they have."""
    for worker in workers:
        worker.pipe.close()
    steps = [(None, _FAREWELL_S)] + ([] if at_once else [(signal.SIGTERM, _GRACE_S)]) + [(signal.SIGKILL, _GRACE_S)]
    for sent, seconds in steps:
        until = time.monotonic() + seconds
        for worker in workers:
            if sent is not None and worker.process.is_alive():
                os.kill(worker.process.pid, sent)
        for worker in workers:
            worker.process.join(max(0.0, until - time.monotonic()))


def sweep_job(
    context: Any, config: Any, function: Any, state: dict[Any, Any], number: int, overrides: list[str]
) -> Any:
    """A job of a sweep, in a process of its own, as Hydra's launchers run it: its JobReturn.

    Here and not with the launcher: Hydra loads its plugins so that other processes do not find what is in them.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton
    from hydra.core.utils import run_job, setup_globals
    from omegaconf import open_dict

    from connector.memo import share

    share()
    setup_globals()
    Singleton.set_state(state)
    job = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job):
        job.hydra.job.id, job.hydra.job.num = f"{job.hydra.job.name}_{number}", number
    HydraConfig.instance().set_config(job)
    of_sweep = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
    return run_job(hydra_context=context, config=job, task_function=function, **of_sweep)
