"""If a writer is killed while judgements arrive, everything it acknowledged is there."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from sqlalchemy import text

from rlhf_lightning.feedback.store import FeedbackStore

WRITER = """
import sys
from rlhf_lightning.feedback.records import Answer
from rlhf_lightning.feedback.store import FeedbackStore

store = FeedbackStore(sys.argv[1])
while (task := store.next_task(sys.argv[2])) is not None:
    print(task.id, store.record(sys.argv[2], task.id, Answer("choice", 1, 3, note="kept")), flush=True)
    store.undo(sys.argv[2])
    store.record(sys.argv[2], task.id, Answer("tie"))
"""


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_every_acknowledged_judgement_outlives_a_kill(url, pair, kills):
    random_numbers = random.Random(kills)
    acknowledged = set()
    with FeedbackStore(url) as store:
        store.add_tasks([pair(str(i)) for i in range(2000)])
        for _ in range(kills):
            store.add_labeler("ana")
            command = [sys.executable, "-c", WRITER, url, "ana"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
                for _ in range(random_numbers.randint(3, 40)):  # a kill falls anywhere after an acknowledgement
                    acknowledged.add(writer.stdout.readline().strip())
                writer.kill()
                acknowledged |= {line.strip() for line in writer.stdout if line.endswith("\n")}
        with store.reading() as connection:
            kept = connection.execute(
                text(
                    "SELECT tasks.id, judgements.id FROM judgements JOIN tasks ON tasks.number = judgements.task "
                    "WHERE more LIKE '%kept%' AND strength = 3"
                )
            )
            assert acknowledged <= {f"{task} {judgement}" for task, judgement in kept}
            if url.startswith("sqlite"):
                assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        assert len(acknowledged) > kills
        judged = [judgement.task for judgement in store.judgements()]
        assert len(judged) == len(set(judged))
