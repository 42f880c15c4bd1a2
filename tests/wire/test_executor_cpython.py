"""CPython's own tests of `concurrent.futures`, against `apothic.Executor` and a real server.

They are those of the running Python, or, where it came without them, Debian's for the same version. Each test is in one
of two tables: it runs here, or it is left out for a reason. One that is in neither fails.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import pkgutil
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from rig import Server

from apothic import ControlPlaneClient, Executor
from apothic.client.future import Future

RUN = {
    "ExecutorTest": """test_submit test_submit_keyword test_map test_map_exception test_map_timeout
        test_shutdown_race_issue12456 test_no_stale_references test_max_workers_negative test_free_reference""",
    "ExecutorShutdownTest": "test_run_after_shutdown test_hang_issue12364 test_cancel_futures",
    "WaitTests": """test_20369 test_first_completed test_first_completed_some_already_completed test_first_exception
        test_first_exception_some_already_complete test_first_exception_one_already_failed test_all_completed
        test_timeout""",
    "AsCompletedTests": """test_no_timeout test_zero_timeout test_future_times_out test_duplicate_futures
        test_free_reference_yielded_future test_correct_timeout_exception_msg""",
    "ProcessPoolExecutorTest": "test_map_chunksize",
    "ExecutorDeadlockTest": "test_error_during_func_exec_on_worker",
    "FutureTests": """test_done_callback_with_result test_done_callback_with_exception test_done_callback_with_cancel
        test_done_callback_raises test_done_callback_already_successful test_done_callback_already_failed
        test_done_callback_already_cancelled test_done_callback_raises_already_succeeded test_repr test_cancel
        test_cancelled test_done test_running test_result_with_timeout test_result_with_success
        test_result_with_cancel test_exception_with_timeout test_exception_with_success test_multiple_set_result
        test_multiple_set_exception""",
}

LEFT_OUT = {
    "it reads what the job prints from this process's stdout, and imports the class from concurrent.futures by name; "
    "ours are in test_executor_ends.py": {
        "ExecutorShutdownTest": """test_interpreter_shutdown test_submit_after_interpreter_shutdown test_hang_gh83386
            test_hang_gh94440""",
        "ThreadPoolShutdownTest": "test_cancel_futures_wait_false",
    },
    "there is no initializer: what a worker needs is made where it is used": {
        "InitializerMixin": "test_initializer",
        "FailingInitializerMixin": "test_initializer",
        "FailingInitializerResourcesTest": "test_spawn test_forkserver",
    },
    "the call and this process would have to share memory": {
        "ThreadPoolExecutorTest": """test_map_submits_without_iteration test_saturation
            test_executor_map_current_future_cancel""",
        "ThreadPoolWaitTests": "test_pending_calls_race",
        "ProcessPoolExecutorTest": "test_ressources_gced_in_workers test_saturation",
    },
    "it looks at the threads of a thread pool": {
        "ThreadPoolExecutorTest": "test_default_workers test_idle_thread_reuse test_hang_global_shutdown_lock",
        "ThreadPoolShutdownTest": """test_threads_terminate test_context_manager_shutdown test_del_shutdown
            test_shutdown_no_wait test_thread_names_assigned test_thread_names_default""",
    },
    "it looks at the processes, queues and limits of a process pool": {
        "ProcessPoolExecutorTest": """test_max_workers_too_large test_idle_process_reuse_one
            test_idle_process_reuse_multiple test_python_finalization_error""",
        "ProcessPoolShutdownTest": """test_processes_terminate test_context_manager_shutdown test_del_shutdown
            test_shutdown_no_wait""",
        "ExecutorDeadlockTest": """test_crash_big_data test_gh105829_should_not_deadlock_if_wakeup_pipe_full
            test_shutdown_deadlock_pickle""",
    },
    "there is no max_tasks_per_child": {
        "ProcessPoolExecutorTest": """test_max_tasks_per_child test_max_tasks_per_child_defaults_to_spawn_context
            test_max_tasks_early_shutdown""",
    },
    "a process that dies is an attempt that failed, not a broken pool: the error is ours, and the next call runs; see "
    "test_executor.py": {
        "ProcessPoolExecutorTest": "test_killed_child test_traceback",
        "ExecutorDeadlockTest": """test_error_at_task_pickle test_exit_at_task_unpickle test_error_at_task_unpickle
            test_crash_at_task_unpickle test_crash_during_func_exec_on_worker test_exit_during_func_exec_on_worker
            test_crash_during_result_pickle_on_worker test_exit_during_result_pickle_on_worker
            test_error_during_result_pickle_on_worker test_error_during_result_unpickle_in_result_handler
            test_exit_during_result_unpickle_in_result_handler test_shutdown_deadlock""",
    },
}


def found() -> list[ModuleType]:
    """Return CPython's modules of these tests; none where they are not installed."""
    import test

    debian = Path(f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/test")
    if debian.is_dir() and str(debian) not in test.__path__:
        test.__path__.append(str(debian))  # behind this Python's own
    try:
        top = importlib.import_module("test.test_concurrent_futures")
    except ModuleNotFoundError:
        return []
    names = [name for _, name, _ in pkgutil.iter_modules(getattr(top, "__path__", []))]
    return [top, *(importlib.import_module(f"{top.__name__}.{name}") for name in names if name != "__main__")]


MODULES = found()
if not MODULES:
    pytest.skip(
        "LEFT OUT: this Python has no test.test_concurrent_futures: apt-get install libpython3-testsuite",
        allow_module_level=True,
    )

# Those that CPython makes of two classes by itself have no tests of their own.
CLASSES = {
    name: thing
    for module in MODULES
    for name, thing in vars(module).items()
    if isinstance(thing, type) and any(test.startswith("test_") for test in vars(thing))
}
THERE = {(name, test) for name, cls in CLASSES.items() for test in vars(cls) if test.startswith("test_")}
RUNNING = {(name, test) for name, tests in RUN.items() for test in tests.split()}
NOT_RUNNING = {
    (name, test) for classes in LEFT_OUT.values() for name, tests in classes.items() for test in tests.split()
}


class Ours(Executor):
    """Our executor, made as the tests make theirs: with positional and process-pool arguments."""

    client: ClassVar[ControlPlaneClient | None] = None

    def __init__(self, max_workers: int = 2, mp_context: Any = None) -> None:
        # Five workers are to run on two cores.
        super().__init__(max_workers=max_workers, app_name="cpython", client=Ours.client, cpu=0.1, memory_mb=128)


class WithOurs(unittest.TestCase):
    executor_type: ClassVar[type[Executor]] = Ours
    worker_count = 5

    def setUp(self) -> None:
        self.executor = Ours(max_workers=self.worker_count)

    def tearDown(self) -> None:
        self.executor.shutdown(wait=True)

    def get_context(self) -> Any:
        return multiprocessing.get_context()


@pytest.fixture(scope="module", autouse=True)
def client(server: Server) -> Iterator[None]:
    Ours.client = server.client()
    yield
    Ours.client = None


def test_every_test_of_cpython_runs_here_or_is_left_out_for_a_reason() -> None:
    assert THERE - RUNNING - NOT_RUNNING == set()
    assert RUNNING & NOT_RUNNING == set()
    assert {name for name, _ in RUNNING | NOT_RUNNING} <= {name for name, _ in THERE} | {
        "FailingInitializerResourcesTest"  # not in every version
    }


@pytest.mark.parametrize(("name", "test"), sorted(RUNNING & THERE))
def test_of_cpython(name: str, test: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = CLASSES[name]
    if issubclass(cls, unittest.TestCase):  # about futures alone
        monkeypatch.setattr(sys.modules[cls.__module__], "Future", Future)
        monkeypatch.setattr(
            logging.getLogger(), "handlers", []
        )  # so that what is logged goes to stderr, as they expect
        case = cls(test)
    else:
        case = type(name, (cls, WithOurs), {})(test)
    result = unittest.TestResult()
    case.run(result)

    assert result.testsRun == 1
    assert [text for _, text in [*result.failures, *result.errors, *result.skipped]] == []
