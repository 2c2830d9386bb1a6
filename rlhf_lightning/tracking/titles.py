"""What a run is called in its store: by its name, and by what sets it apart from others of that name."""

from __future__ import annotations

from pathlib import PurePosixPath

from rlhf_lightning.outside_text import on_one_line
from rlhf_lightning.runs.command_words import GivenCommand
from rlhf_lightning.runs.run import Run
from rlhf_lightning.secret_text import shown

_LONGEST, _LONGEST_WORD = 100, 40  # characters
_SAY_NOTHING = {"experiment", "pipeline", "name", "run_dir", "ckpt", "from", "go_on", "explain", "resume_anyway"}
_SAY_NOTHING |= {"register", "logger", "hydra", "requires", "prepare", "evaluation"}


def run_title(run: Run, command: GivenCommand) -> str:
    """Return the name of a run, or of a pipeline, with the settings that its command has changed.

    In a sweep these are the ones that differ among its runs, and they come first: MLflow's table of runs shows the
    first twenty characters. A stage has those of the pipeline and its own.
    """
    words = command.words if command.varied is None else command.varied
    stage = run.folder.name if run.pipeline is not None else None
    title = titled(run.name, words, stage)
    if command.varied is None or title == run.name:
        return title
    return f"{title.removeprefix(f'{run.name} ')} {run.name}"


def titled(name: str, words: tuple[str, ...], stage: str | None = None) -> str:
    """Return a name with the changed settings, as short as they can be told apart.

    Args:
        name: of the run.
        words: overrides.
        stage: of a pipeline, whose own overrides begin with `stages.<stage>.`.

    >>> titled("ppo_demo", ("experiment=ppo_demo", "optimizer.lr=1e-4", "seed=1", "data.train=data/hard.jsonl"))
    'ppo_demo lr=1e-4 seed=1 train=hard.jsonl'
    >>> titled("demo-ppo", ("stages.ppo.algorithm.kl.coef=0.1", "stages.dpo.algorithm.beta=1", "seed=1"), "ppo")
    'demo-ppo coef=0.1 seed=1'
    """
    title = name
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        parts, of_stage = key.split("."), ""
        if parts[0] in ("stages", "round"):
            if stage is not None and parts[1:2] != [stage]:
                continue
            of_stage, parts = "" if stage is not None else f"{'.'.join(parts[1:2])}.", parts[2:]
        if not parts or not value or parts[0].partition("/")[0].partition("@")[0] in _SAY_NOTHING:
            continue
        if "/" in value and " " not in value:
            value = PurePosixPath(value.strip("\"'")).name
        said = on_one_line(shown(f"{of_stage}{parts[-1]}={value}"))
        if len(said) > _LONGEST_WORD:
            said = f"{said[:_LONGEST_WORD]}…"
        if len(title) + len(said) > _LONGEST:
            return f"{title} …"
        title = f"{title} {said}"
    return title
