"""What the commands share: reading the command line, `--help`, sweeps, and exit codes.

Exit codes: 0 done; 2 wrong user input (one line on stderr); 3 the model is trained and exported but something after it
failed (one line); 75 a pipeline waits for people to label (one line); 1 anything else (three lines, and a file with the
traceback); 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP (one line says how to continue; a training run has saved a checkpoint).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
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
    split_sweep,
    with_own_names,
)
from rlhf_lightning.commands.guidance import add_options, answer
from rlhf_lightning.commands.launching import (
    check_jobs,
    check_processes,
    has_several_jobs,
    in_run_folder,
    in_submitit,
    is_submitit,
    launcher_overrides,
    naming_job,
    numbered,
    waiting_for_jobs,
)
from rlhf_lightning.commands.redaction import remember_words
from rlhf_lightning.compat.hydra_names import arguments_parser
from rlhf_lightning.disk import disk_error, file_of, finding, remedy
from rlhf_lightning.durable import write_text_durably
from rlhf_lightning.environment import explain_missing
from rlhf_lightning.errors import AfterTrainingError, UserError, WaitingError, is_out_of_memory, reason
from rlhf_lightning.guarded_streams import guarded_streams
from rlhf_lightning.outside_text import on_one_line
from rlhf_lightning.process.memory import settle_memory
from rlhf_lightning.process.quiet import quieten
from rlhf_lightning.process.sudden_exits import answered_exits, exit_of_others
from rlhf_lightning.runs.command_words import carrying_out
from rlhf_lightning.runs.ranks import first_process, follows_the_first
from rlhf_lightning.secret_text import shown
from rlhf_lightning.stopping import answered, signal_of
from rlhf_lightning.working_folder import import_from_working_folder, take_working_folder_off_path

Task = Callable[[dict[str, Any]], object]
_FEW_JOBS = 20  # of a sweep, searched for secrets
_DEBUG = "RLHF_LIGHTNING_DEBUG"
# What the operating system refuses: missing or inaccessible files, and a full disk.
_OF_THE_SYSTEM = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
    *(errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP),
}
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")  # gloo, NCCL
_LONG_WORD = re.compile(r"\S{160,}")  # a word of thousands of letters would bury the message
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
    """Return Hydra's options, ours and the overrides from `sys.argv`; `-m` and `--help` may stand between overrides."""
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun", "-h", "--help"))
    remember_words(sys.argv[1:])
    _take_debug()
    parser = arguments_parser()
    parser.prog = command
    add_options(parser)

    def complain(message: str) -> NoReturn:
        raise UserError(f"{message}; keys are written without dashes (optimizer.lr=1e-5), {command} --help lists them")

    parser.error = complain  # type: ignore[method-assign]
    return parser.parse_args()


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Disable the garbage collector while configs are composed and checked: it would rescan all their nodes."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def run_command(body: Callable[[], None]) -> None:
    """Run a command's body; wrong input ends in one line on stderr and exit code 2, a stop in one line and its code."""
    with guarded_streams(), answered(first_process(), follows_the_first()):
        output = sys.stdout
        _run_body(body)
    if (why := getattr(output, "lost", None)) is not None:
        _fail(
            f"standard output cannot be written: {reason(why)}; everything else is done, but what was printed after "
            "that is lost"
        )


def _run_body(body: Callable[[], None]) -> None:
    # Hydra reports errors itself, in several lines and with exit code 1, unless told to leave them alone.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    take_working_folder_off_path()
    import_from_working_folder()
    quieten()
    settle_memory()
    try:
        with answered_exits():
            body()
    except (SystemExit, Exception) as error:
        if signal_of(error) is not None:
            raise
        if isinstance(error, SystemExit):
            if (message := exit_of_others(error)) is not None:
                _fail(message)
            raise
        _end_with(error)


def _end_with(error: Exception) -> NoReturn:
    """Tell the user what an exception means, and exit with the matching code."""
    if isinstance(error, AfterTrainingError):
        _fail(str(error), 3)
    if isinstance(error, WaitingError):
        _say(f"waiting: {error}")
        sys.exit(os.EX_TEMPFAIL)
    if isinstance(error, BrokenPipeError):  # `rlhf-plan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    if os.environ.get(_DEBUG):
        traceback.print_exception(error)
    if follows_the_first() and _has_lost_the_others(error):
        sys.exit(1)  # the first process, which started this one, has reported why it ended
    if (message := as_user_error(error)) is not None:
        _fail(message)
    report_bug(error)
    sys.exit(1)


def _has_lost_the_others(error: BaseException) -> bool:
    """Return whether a process sees from its broken connection that another one has ended."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _GONE)


def _take_debug() -> None:
    """Take `debug=true` out of `sys.argv`; the processes that Lightning starts inherit it."""
    for word in [word for word in sys.argv[1:] if word.partition("=")[0] == "debug"]:
        value = word.partition("=")[2].lower()
        if value not in ("true", "false"):
            raise UserError(f'debug: found "{value}"; must be true or false')
        sys.argv.remove(word)
        os.environ.pop(_DEBUG, None)
        if value == "true":
            os.environ[_DEBUG] = "1"


def as_user_error(error: Exception) -> str | None:
    """Return the one-line message for an exception that the user can fix, or None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if (missing := explain_missing(error)) is not None:
        return missing
    if is_out_of_memory(error):
        return (
            f"out of memory: {reason(error)}; rlhf-plan with the same overrides says what the run needs and what to "
            "change"
        )
    if (number := disk_error(error)) is not None:
        file = file_of(error)
        what = f"{file} cannot be written" if file else "a file cannot be read or written"
        return f"{what}: {finding(number, Path(file).parent if file else Path())}; {remedy(number)}, and try again"
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        return reason(error)
    return None


def report_bug(error: Exception) -> None:
    """Print three lines about an unexpected exception, and write its traceback to a file."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "rlhf_lightning" in frame.filename] or frames
    where = f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    said, kind = reason(error), type(error).__name__
    said = said if said.startswith(kind) else f"{kind}: {said}"
    written = _keep_traceback(f"{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}")
    sys.stderr.write(
        f"unexpected error: {on_one_line(shown(said))}{where}\n"
        "This looks like a bug in rlhf-lightning, not your mistake; please report it with the traceback.\n"
        f"traceback: {written} (debug=true prints it)\n"
    )


def _keep_traceback(text: str) -> str:
    """Write the traceback to a file in the temporary folder, or else the working folder; return its name."""
    why = ""
    for folder in (None, os.curdir):
        try:
            descriptor, name = tempfile.mkstemp(prefix="rlhf-lightning-", suffix=".txt", dir=folder, text=True)
        except OSError as error:
            why = why or reason(error)
            continue
        try:
            with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(shown(text))
        except OSError as error:
            why = why or reason(error)
            os.unlink(name)
        else:
            return name
    return f"not written, {why}"


def _shortened(word: re.Match[str]) -> str:
    return f"{word[0][:60]}...{word[0][-20:]}"


def _fail(message: str, code: int = 2) -> NoReturn:
    _say(f"error: {message}")
    sys.exit(code)


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # a log file on a full disk
        sys.stderr.write(f"{_LONG_WORD.sub(_shortened, on_one_line(shown(message)))}\n")


def run_hydra_command(
    command: str,
    config_name: str,
    task: Task,
    check: Task = lambda config: None,
) -> None:
    """Run a command with one config: compose it and pass it to `task`. Help, sweeps and Hydra's own options work too.

    Args:
        command: its name.
        config_name: the top of its configs.
        task: the command itself.
        check: raises UserError for what can be known to be wrong with a config before its job is queued.
    """

    def body() -> None:
        arguments = read_arguments(command)
        if (said := answer(command, arguments)) is not None:
            print(said)
        elif is_plain(arguments):
            if chosen := launcher_overrides(arguments.overrides):
                raise UserError(f"{chosen[0]}: a launcher runs the jobs of a sweep: {command} -m ...")
            with carrying_out(command, arguments.overrides):
                task(compose_config(config_name, arguments.overrides, arguments.config_dir))
        else:
            _hydra_main(command, config_name, task, check, arguments)

    run_command(body)


def is_plain(arguments: argparse.Namespace) -> bool:
    """Return whether this is one ordinary run: no sweep, and no option that only Hydra handles."""
    return not any(getattr(arguments, name, None) for name in _HYDRA_OPTIONS)


def _hydra_main(command: str, config_name: str, task: Task, check: Task, arguments: argparse.Namespace) -> None:
    """Run Hydra's own entry point: `--multirun` through its sweeper and launcher, `--cfg`, `--info`, `--hydra-help`."""
    several = arguments.multirun and has_several_jobs(config_name, arguments.overrides)

    def job(config: DictConfig) -> None:
        typed = arguments.overrides if several else None
        with carrying_out(command, HydraConfig.get().overrides.task, typed):
            own = [word for word in HydraConfig.get().overrides.task if word not in arguments.overrides]
            _run_job(task, config, own if several else None)

    main = hydra.main(config_path=str(config_folder(config_name)), config_name=config_name, version_base=HYDRA_VERSION)
    _remember_secrets(config_name, arguments)
    try:
        words = with_own_names(config_name, arguments.overrides, arguments.config_dir)
        added = dict(zip(arguments.overrides, words, strict=True))
        sys.argv = [added.get(word, word) for word in sys.argv]  # which Hydra reads itself
        if arguments.multirun and launcher_overrides(arguments.overrides):
            check_jobs(config_name, arguments.overrides, arguments.config_dir, check)
        with waiting_for_jobs():
            main(job)()
    except COMPOSITION_ERRORS as error:
        raise UserError(composition_error(error, config_name, arguments.overrides)) from error


def _remember_secrets(config_name: str, arguments: argparse.Namespace) -> None:
    """Register the config's secrets before Hydra prints it (`--cfg`) or writes it (a sweep's multirun.yaml)."""
    with contextlib.suppress(UserError, *COMPOSITION_ERRORS):  # reported by Hydra's own composition
        shared, jobs = split_sweep(config_name, arguments.overrides)
        for overrides in [shared, *jobs[:_FEW_JOBS]]:
            compose_config(config_name, overrides, arguments.config_dir)


def _hide_secrets(sweep_dir: str) -> None:
    """Remove secrets from what Hydra has written about a sweep; nothing reads it again."""
    file = Path(sweep_dir) / "multirun.yaml"
    if first_process() and file.is_file() and (text := file.read_text(encoding="utf-8")) != shown(text):
        write_text_durably(file, shown(text))


def _run_job(task: Task, config: DictConfig, own: Sequence[str] | None) -> None:
    """Run one job of a sweep, called by Hydra in this process or in one that submitit has started.

    Args:
        task: the command.
        config: the job's.
        own: the overrides that distinguish it from the other jobs; None: there is no other.
    """
    hydra_config: Any = HydraConfig.get()
    plain = plain_config(config, hydra_config.runtime.choices)
    launcher, sweep = hydra_config.launcher, hydra_config.mode == RunMode.MULTIRUN
    if sweep:
        _hide_secrets(hydra_config.sweep.dir)
    if sweep and own is not None:
        plain = numbered(plain, hydra_config.job.num)

    def body() -> None:
        if sweep:
            check_processes(plain, launcher)
        ready = in_run_folder(plain, hydra_config.sweep.dir, hydra_config.job.num) if is_submitit(launcher) else plain
        with naming_job(hydra_config.job.num, own, ready.get("run_dir")) if sweep else contextlib.nullcontext():
            task(ready)

    if is_submitit(launcher):
        with in_submitit():
            run_command(body)
        return
    try:
        body()
    except UserError as error:
        # Hydra would delay the exception and print several lines.
        _fail(str(error))
