"""What the commands share: reading the command line, `--help`, sweeps, and exit codes.

Exit codes: 0 done, 2 the user's input is wrong (one line on stderr), 1 anything else (with its traceback), 130 Ctrl-C,
143 SIGTERM (a training run has saved a checkpoint then).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rlhf_lightning.commands.composition import (
    COMPOSITION_ERRORS,
    HYDRA_VERSION,
    compose_config,
    composition_error,
    config_folder,
    plain_config,
)
from rlhf_lightning.commands.launching import (
    check_jobs,
    check_processes,
    has_several_jobs,
    in_run_folder,
    in_submitit,
    is_submitit,
    launcher_overrides,
    numbered,
    waiting_for_jobs,
)
from rlhf_lightning.commands.quiet import quieten
from rlhf_lightning.commands.run_folder import first_process
from rlhf_lightning.errors import Terminated, UserError

Task = Callable[[dict[str, Any]], object]
_HYDRA_OPTIONS = (
    "multirun",
    "cfg",
    "info",
    "hydra_help",
    "shell_completion",
    "experimental_rerun",
    "config_name",
    "config_path",
)


def read_arguments(command: str) -> argparse.Namespace:
    """Hydra's options and the overrides, from `sys.argv`, where `-m` may stand between overrides: it is moved first."""
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    parser = get_args_parser()
    parser.prog = command

    def complain(message: str) -> NoReturn:
        raise UserError(f"{message}; keys are written without dashes (optimizer.lr=1e-5), {command} --help lists them")

    parser.error = complain  # type: ignore[method-assign]
    return parser.parse_args()


def run_command(body: Callable[[], None]) -> None:
    """Run a command's body; wrong input becomes one line on stderr and exit code 2."""
    # Hydra reports errors itself, in several lines and with exit code 1, unless it is told to leave them alone.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # an extension's modules may lie in the user's folder
    quieten()
    try:
        with _terminated_by_sigterm():
            body()
    except UserError as error:
        _fail(str(error))
    except Terminated:
        # Lightning kills this process if one that it has started ends with another code than 0.
        sys.exit(143 if first_process() else 0)
    except FileNotFoundError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: no such file")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


@contextmanager
def _terminated_by_sigterm() -> Iterator[None]:
    """SIGTERM becomes `Terminated`, so that what is open is closed. While a model trains, `StopOnSigterm` has it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise Terminated

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(2)


def run_hydra_command(
    command: str,
    config_name: str,
    task: Task,
    help_text: Callable[[str | None], str],
    check: Task = lambda config: None,
) -> None:
    """A command over one config: compose it and hand it to `task`; help, sweeps and Hydra's own options work too.

    Args:
        command: its name.
        config_name: the top of its configs.
        task: the command itself.
        help_text: the page for `--help`, given `--config-dir`.
        check: raises UserError for what can be known to be wrong with a config before its job is queued.
    """

    def body() -> None:
        arguments = read_arguments(command)
        if arguments.help:
            print(help_text(arguments.config_dir))
        elif is_plain(arguments):
            if chosen := launcher_overrides(arguments.overrides):
                raise UserError(f"{chosen[0]}: a launcher runs the jobs of a sweep: {command} -m ...")
            task(compose_config(config_name, arguments.overrides, arguments.config_dir))
        else:
            _hydra_main(config_name, task, check, arguments)

    run_command(body)


def is_plain(arguments: argparse.Namespace) -> bool:
    """Whether this is one ordinary run: no sweep, and none of the options that only Hydra answers."""
    return not any(getattr(arguments, name, None) for name in _HYDRA_OPTIONS)


def _hydra_main(config_name: str, task: Task, check: Task, arguments: argparse.Namespace) -> None:
    """Hydra's own entry: `--multirun` through its sweeper and launcher, `--cfg`, `--info`, `--hydra-help`."""
    several = arguments.multirun and has_several_jobs(config_name, arguments.overrides)

    def job(config: DictConfig) -> None:
        _run_job(task, config, several)

    main = hydra.main(config_path=str(config_folder(config_name)), config_name=config_name, version_base=HYDRA_VERSION)
    try:
        if arguments.multirun and launcher_overrides(arguments.overrides):
            check_jobs(config_name, arguments.overrides, arguments.config_dir, check)
        with waiting_for_jobs():
            main(job)()
    except COMPOSITION_ERRORS as error:
        raise UserError(composition_error(error, config_name, arguments.overrides)) from error


def _run_job(task: Task, config: DictConfig, several: bool) -> None:
    """What Hydra calls: a job of a sweep, in this process or in one that submitit has started."""
    hydra_config: Any = HydraConfig.get()
    plain = plain_config(config, hydra_config.runtime.choices)
    launcher, sweep = hydra_config.launcher, hydra_config.mode == RunMode.MULTIRUN
    if sweep and several:
        plain = numbered(plain, hydra_config.job.num)

    def body() -> None:
        if sweep:
            check_processes(plain, launcher)
        task(in_run_folder(plain, hydra_config.sweep.dir, hydra_config.job.num) if is_submitit(launcher) else plain)

    if is_submitit(launcher):
        with in_submitit():
            run_command(body)
        return
    try:
        body()
    except UserError as error:
        # Hydra would hold the exception back and print several lines.
        _fail(str(error))
