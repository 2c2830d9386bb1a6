"""How to go on after a stop: what belongs into the command that takes a run up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlhf_lightning.commands.quoting import shell_words
from rlhf_lightning.commands.run_folder import has_checkpoint
from rlhf_lightning.commands.stages import StageConfig

AGAIN = "start it again with the same command"


class Start(Protocol):
    """What `StartRun` knows."""

    begun: bool
    saved: bool


@dataclass
class Place:
    """How far a run has come.

    Args:
        ckpt: what it resumes, as the user has named it.
        folder: its run folder, once it is chosen.
        start: knows whether the run has taken over its folder (what was there before is of another run), and whether
            it has saved a checkpoint itself.
    """

    ckpt: str | None = None
    folder: Path | None = None
    start: Start | None = None

    @property
    def begun(self) -> bool:
        return self.start is not None and self.start.begun

    def resumable(self) -> str | None:
        """Return what `ckpt` must be to go on with what the run has done; None: it has saved nothing yet."""
        saved = self.begun and (self.ckpt is None or (self.start is not None and self.start.saved))
        return "last" if saved and self.folder is not None and has_checkpoint(self.folder) else self.ckpt

    def advice(self) -> str:
        """Return how to go on with a run of rlhf-train."""
        ckpt = self.resumable()
        if ckpt is None or self.folder is None:
            return AGAIN if ckpt is not None or not self.begun else f"there is no checkpoint yet; {AGAIN}"
        return f"go on with the same command with {shell_words({'ckpt': ckpt, 'run_dir': self.folder})}"


@dataclass
class Progress:
    """How far a pipeline has come.

    Args:
        run_dir: the pipeline's folder.
        stages: all of them.
        done: how many have ended, in this command or before.
        place: of the stage that is under way.
    """

    run_dir: Path
    stages: Sequence[StageConfig]
    done: int = 0
    place: Place | None = None

    def begin(self) -> Place:
        """Return the place of the next stage, which begins now."""
        self.place = Place(self.stages[self.done].config.get("ckpt"))
        return self.place

    def end(self) -> None:
        """The stage has ended, or ended before."""
        self.done, self.place = self.done + 1, None

    def advice(self) -> str:
        """Return how to go on. Once all stages have ended, the last one is taken up with nothing left to train."""
        stage = self.stages[min(self.done, len(self.stages) - 1)]
        if self.done == len(self.stages):
            ckpt = "last" if has_checkpoint(stage.folder) else None
        else:
            ckpt = self.place.resumable() if self.place else stage.config.get("ckpt")
        if ckpt is None and self.done == 0:
            return f"there is no checkpoint yet; {AGAIN}" if self.place and self.place.begun else AGAIN
        resumed = {} if ckpt is None else {f"stages.{stage.name}.ckpt": ckpt}
        overrides = {"from": stage.name, **resumed, "run_dir": self.run_dir}
        return f"go on with the same command with {shell_words(overrides)}"
