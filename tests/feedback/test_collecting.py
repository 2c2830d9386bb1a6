"""From prompts and policies to tasks: what is sampled and stored, the cost of an interruption, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback import Asking, Drawing, FeedbackStore, add_tasks, collect_tasks, policies, rounds
from rlhf_lightning.feedback.collection_run import run_collection
from rlhf_lightning.feedback.records import Response
from rlhf_lightning.feedback.scoring import Answered, scored
from rlhf_lightning.feedback.sources import read_checks, read_prompts, read_responses
from rlhf_lightning.feedback.tasks import Sample
from rlhf_lightning.models.ilql_heads import ILQLHeads, write_heads
from tests.commands.runs import write_model

PROMPTS = [{"prompt": f"{a} {b}", "topic": a} for a in "abc" for b in "ghi"]
DRAWING = Drawing(samples_per_prompt=2, max_new_tokens=6, batch_size=4, seed=5)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("policies")
    return {"old": str(write_model(folder / "old")), "new": str(write_model(folder / "new", chat=True))}


def everything(store: FeedbackStore) -> list[Any]:
    return list(store.tasks())


def test_each_policy_answers_each_prompt_and_a_second_call_samples_nothing(store, places, monkeypatch):
    asking = Asking(pairs=3, seed=5)
    first = collect_tasks(store, PROMPTS, places, asking, DRAWING)
    assert (first.prompts, first.sampled, first.known, first.there) == (9, 36, 0, 0)
    assert first.added == len(everything(store)) > 9
    sources = {frozenset(response.source for response in task.responses) for task in store.tasks()}
    assert sources == {frozenset(["old", "new"]), frozenset(["old"]), frozenset(["new"])}
    monkeypatch.setattr(policies, "load_policy", lambda *_: pytest.fail("it loaded a model"))
    monkeypatch.setattr(policies, "load_tokenizer", lambda *_: pytest.fail("it loaded a tokenizer"))
    second = collect_tasks(store, PROMPTS, places, asking, DRAWING)
    assert (second.sampled, second.known, second.added, second.there) == (0, 36, 0, first.added)


def test_each_round_asks_about_prompts_that_the_others_have_not_used(places, tmp_path):
    """Some would otherwise be asked about twice while others wait: 4 and 4 of 9, drawn alone, rarely differ."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, PROMPTS)), encoding="utf-8")
    for seed in range(3):
        url, asked = f"sqlite:///{tmp_path}/{seed}.db", dict[str, set[Any]]()
        for policy in ("old", "new"):
            for _ in range(2):  # a stage that is called again does not ask about others
                rounds.collect(tmp_path, places[policy], url, str(prompts), 4, "ranking", max_new_tokens=6, seed=seed)
            with FeedbackStore(url) as store:
                tasks = [task for task in store.tasks() if task.responses[0].source == policy]
            asked[policy] = {task.prompt for task in tasks}
            assert len(tasks) == 4
        assert not asked["old"] & asked["new"]


def test_half_of_the_responses_are_the_baselines_unless_it_is_the_policy_itself(places, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, PROMPTS)), encoding="utf-8")
    url, found = f"sqlite:///{tmp_path}/feedback.db", dict[str, list[Any]]()
    for policy in ("old", "new"):
        for _ in range(2):  # called again, it asks about the same prompts
            rounds.collect(
                tmp_path, places[policy], url, str(prompts), 4, "ranking", max_new_tokens=6, baseline=places["old"]
            )
        with FeedbackStore(url) as store:
            seen = {task.id for each in found.values() for task in each}
            found[policy] = [task for task in store.tasks() if task.id not in seen]
    sources = {name: [sorted(each.source for each in task.responses) for task in made] for name, made in found.items()}
    assert sources == {"old": [["old"] * 4] * 4, "new": [["new", "new", "old", "old"]] * 4}
    assert not {task.prompt for task in found["old"]} & {task.prompt for task in found["new"]}


@pytest.mark.parametrize(
    ("baseline", "samples", "expected"),
    [
        ("old", 3, "collect.samples_per_prompt: 3; must be even: half are the baseline's"),
        (
            "other/new",
            2,
            r"collect.baseline: other/new has the name of \S+/new, which tells responses apart; rename it",
        ),
    ],
)
def test_a_baseline_that_cannot_answer_beside_a_policy_is_refused(baseline, samples, expected, places, tmp_path):
    with pytest.raises(UserError, match=expected):
        rounds.collect(
            tmp_path, places["new"], "sqlite:///no.db", "no.jsonl", samples_per_prompt=samples, baseline=baseline
        )


def test_an_interrupted_collection_ends_as_an_uninterrupted_one(store, places, tmp_path, monkeypatch):
    asking = Asking(pairs=2, seed=5)
    with FeedbackStore(f"sqlite:///{tmp_path}/whole.db") as whole:
        collect_tasks(whole, PROMPTS, places, asking, DRAWING)
        expected = everything(whole)
    keep, kept = policies.LocalPolicy.answers, []

    def until_it_is_killed(policy: Any, positions: Any) -> Any:
        if len(kept) == 4:
            raise KeyboardInterrupt
        kept.append(len(positions))
        return keep(policy, positions)

    monkeypatch.setattr(policies.LocalPolicy, "answers", until_it_is_killed)
    with pytest.raises(KeyboardInterrupt):
        collect_tasks(store, PROMPTS, places, asking, DRAWING)
    assert everything(store) == []
    monkeypatch.setattr(policies.LocalPolicy, "answers", keep)
    rest = collect_tasks(store, PROMPTS, places, asking, DRAWING)
    assert rest.known == 2 * sum(kept) and rest.sampled == 36 - rest.known > 0
    assert everything(store) == expected


def test_other_weights_another_seed_and_more_prompts_are_sampled(store, places, tmp_path):
    asking, one = Asking(seed=5), {"old": places["old"]}
    collect_tasks(store, PROMPTS[:4], one, asking, DRAWING)
    more = collect_tasks(store, PROMPTS[:6], one, asking, DRAWING)
    assert (more.sampled, more.known) == (4, 8)
    other = Drawing(samples_per_prompt=2, max_new_tokens=6, seed=6)
    assert collect_tasks(store, PROMPTS[:4], one, asking, other).sampled == 8
    trained = {"old": str(write_model(tmp_path / "trained", chat=True))}  # with the same name
    assert collect_tasks(store, PROMPTS[:4], trained, asking, DRAWING).sampled == 8


def test_other_values_beside_the_same_weights_are_another_policy(store, tmp_path):
    """Two runs of ILQL may differ in their heads only, by which they decode."""
    known = []
    for number, scale in enumerate((0.0, 0.5, 0.5)):
        folder = write_model(tmp_path / str(number))
        heads = ILQLHeads(width=32, vocabulary=29)
        with torch.no_grad():
            for parameter in heads.parameters():
                parameter.add_(scale)
        write_heads(heads, folder, strength=1.0)
        known.append(collect_tasks(store, PROMPTS[:2], {"ilql": str(folder)}, Asking(seed=5), DRAWING).known)
    assert known == [0, 0, 4]


def test_a_conversation_is_asked_by_the_chat_template_and_the_answer_is_without_it(store, places):
    rows = [{"prompt": [{"role": "user", "content": "b c"}]}, {"messages": [{"role": "user", "content": "d e"}]}]
    collect_tasks(store, rows, {"new": places["new"]}, Asking(seed=1), DRAWING)
    assert [task.prompt for task in store.tasks()] == [row.get("prompt") or row["messages"] for row in rows]
    assert all("<eos>" not in response.text for task in store.tasks() for response in task.responses)


def test_pairs_are_chosen_by_rewards_which_get_the_columns_of_the_row(store, places):
    seen = []

    def length(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        seen.append(columns["topic"])
        return [float(len(response)) for response in responses]

    asking = Asking("best_worst", seed=5)
    collect_tasks(store, PROMPTS, places, asking, DRAWING, rewards=[length])
    assert seen[0][:4] == ["a"] * 4
    for task in store.tasks():
        lengths = sorted(response.scores[0] for response in task.responses)
        assert lengths == sorted(float(len(response.text)) for response in task.responses) and lengths[0] < lengths[1]
    with pytest.raises(UserError, match=r"choice: uncertain needs scores.*reward\.model"):
        collect_tasks(store, PROMPTS, places, Asking("uncertain"), DRAWING)
    with pytest.raises(UserError, match=r"reward\.model: choice=random uses no scores"):
        collect_tasks(store, PROMPTS, places, Asking(), DRAWING, rewards=[length])


def test_all_members_of_an_ensemble_score_the_pairs_of_a_round(places, tmp_path, monkeypatch):
    def length(sign: float) -> Any:
        return lambda prompts, responses, **columns: [sign * len(response) for response in responses]

    members = {"r_a": length(1.0), "r_b": length(-1.0)}
    monkeypatch.setattr("rlhf_lightning.rewards.make_reward", lambda model, dtype: members[model])
    prompts, url = tmp_path / "prompts.jsonl", f"sqlite:///{tmp_path}/feedback.db"
    prompts.write_text("\n".join(map(json.dumps, PROMPTS)), encoding="utf-8")
    rounds.collect(
        tmp_path, places["old"], url, str(prompts), 4, "uncertain", max_new_tokens=6, reward_model=[*members]
    )
    with FeedbackStore(url) as store:
        shown = [response for task in store.tasks() for response in task.responses]
    assert len(shown) == 8
    assert all(response.scores == (len(response.text), -len(response.text)) for response in shown)


def test_check_tasks_come_among_the_others(store, places):
    checks = read_checks([{"prompt": "z", "chosen": "right", "rejected": "wrong"}])
    collect_tasks(store, PROMPTS, places, Asking(), DRAWING, checks=checks)
    known = [task for task in store.tasks() if task.check is not None]
    assert [task.responses[task.check].text for task in known] == ["right"]
    assert everything(store)[0].check is None


def test_a_check_is_one_also_if_the_responses_make_the_same_pair(store, url):
    checks = read_checks([{"prompt": "a", "chosen": "1", "rejected": "2"}])
    samples = read_responses([{"prompt": "a", "responses": ["1", "2"]}, {"prompt": "b", "responses": ["1", "2"]}])
    assert add_tasks(store, samples, Asking(), checks) == (2, 0)
    assert add_tasks(store, samples, Asking(seed=5), read_checks([checks_row(1, 2)], seed=5)) == (0, 2)
    known = {task.prompt: task.check for task in store.tasks()}
    assert known["a"] is not None and known["b"] is None
    for row, why in ((checks_row(2, 1), "with the other answer"), (checks_row(1, 2, "b"), "as an ordinary task")):
        with pytest.raises(UserError, match=rf"checks: .*{why}"):
            add_tasks(store, samples, Asking(), read_checks([row]))


def checks_row(chosen, rejected, prompt="a"):
    return {"prompt": prompt, "chosen": str(chosen), "rejected": str(rejected)}


def test_a_collection_without_tasks_says_so_and_does_not_lead_to_labelling(places, url):
    asked = {"prompts": [{"prompt": "a g"}], "limit": None, "responses": None, "checks": None, "explain": False}
    settings = {**asked, "feedback": {"store": url}, "policies": {"one": places["old"], "two": places["old"]}}
    drawing = Drawing(samples_per_prompt=1, max_new_tokens=4, temperature=0.0)
    lines = run_collection(settings, Asking(), drawing, [], lambda: nullcontext(lambda *_: None))
    assert [line.split(":")[0] for line in lines] == ["sampled", "no tasks"]


def test_what_no_pair_can_come_of_is_refused_at_once(store, places):
    with pytest.raises(UserError, match=r"samples_per_prompt: 1 response to each prompt"):
        collect_tasks(store, PROMPTS, {"old": places["old"]}, drawing=Drawing(samples_per_prompt=1))
    with pytest.raises(UserError, match=r"samples_per_prompt: found 2; at temperature 0"):
        Drawing(temperature=0.0)
    with pytest.raises(UserError, match=r"policies\.gone: .*does not exist"):
        collect_tasks(store, PROMPTS, {"gone": "/no/where"})


def test_prompts_come_once_each_with_the_number_of_their_row():
    read = read_prompts([{"prompt": "a"}, {"prompt": "b", "chosen": "x", "rejected": "y"}, {"prompt": "a", "n": 1}])
    assert (read.questions, [index for index, _ in read.rows], read.repeated) == (["a", "b"], [0, 1], 1)
    with pytest.raises(UserError, match=r"prompts, row 2: .*unknown format"):
        read_prompts([{"prompt": "a"}, {"question": "b"}])


def test_responses_that_are_there_already_come_from_rows_of_every_form(tmp_path):
    message = [{"role": "user", "content": "hello"}]
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "responses": ["1", "2"], "sources": ["x", "y"]},
        {"prompt": "a", "completion": "3", "source": "z"},
        {
            "chosen": [*message, {"role": "assistant", "content": "hi"}],
            "rejected": [*message, {"role": "assistant", "content": "no"}],
        },
    ]
    file = tmp_path / "responses.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    first, second = read_responses(file)
    assert [(each.text, each.source) for each in first.responses] == [("1", "x"), ("2", "y"), ("3", "z")]
    assert second.prompt == message and [each.text for each in second.responses] == ["hi", "no"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, "no responses found"),
        ({"prompt": "a", "responses": ["1"]}, "at least 2"),
        ({"prompt": "a", "responses": ["1", "2"], "sources": ["x"]}, "one text for each of the 2"),
        (
            {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "user", "content": "b"}]},
            "one message of the assistant",
        ),
    ],
)
def test_rows_that_hold_no_responses_are_refused_by_their_number(row, said):
    with pytest.raises(UserError, match=rf"^responses, row 2: .*{said}"):
        read_responses([{"prompt": "z", "completion": "fine"}, row])


class Server(BaseHTTPRequestHandler):
    """The part of a vLLM server that a collection uses."""

    asked: ClassVar[list[tuple[str, Any]]] = []

    def do_GET(self) -> None:
        self._say({"data": [{"id": "base"}, {"id": "tuned"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        texts = [f"{body['seed']} {number}" for number in range(body["n"])]
        plain = self.path == "/v1/completions"
        said = [{"text": text} if plain else {"message": {"content": text}} for text in texts]
        self._say({"choices": [{**each, "finish_reason": "stop"} for each in said]})

    def _say(self, answer: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked = []
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_address[1]}"
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_a_server_answers_texts_and_conversations(store, server):
    rows = [{"prompt": "a b"}, {"prompt": [{"role": "user", "content": "c"}]}]
    done = collect_tasks(store, rows, {"served": f"{server}#tuned"}, Asking(seed=1), DRAWING)
    assert (done.sampled, done.added) == (4, 2)
    assert sorted(path for path, _ in Server.asked) == ["/v1/chat/completions", "/v1/completions"]
    assert {body["model"] for _, body in Server.asked} == {"tuned"}
    again = collect_tasks(store, rows, {"served": f"{server}#tuned"}, Asking(seed=1), DRAWING)
    assert (again.sampled, len(Server.asked)) == (0, 2)


def test_a_server_with_several_models_or_none_is_one_line(store, server):
    with pytest.raises(UserError, match=r"policies\.served: .* has 2 models; choose one by #name: base, tuned"):
        collect_tasks(store, PROMPTS, {"served": server}, Asking(), DRAWING)
    with pytest.raises(UserError, match=r"policies\.served: .*no model 'gone'"):
        collect_tasks(store, PROMPTS, {"served": f"{server}#gone"}, Asking(), DRAWING)


def test_a_store_of_the_first_version_is_brought_up_to_date(url, pair, tmp_path):
    with FeedbackStore(url) as store, store.changing() as connection:
        connection.exec_driver_sql("DROP TABLE samples")
        connection.exec_driver_sql("UPDATE facts SET value = '1' WHERE name = 'version'")
    policy = {"old": str(write_model(Path(tmp_path) / "old"))}
    with FeedbackStore(url) as store:
        assert collect_tasks(store, PROMPTS[:1], policy, Asking(), DRAWING).sampled == 2


def test_a_reward_that_reads_text_gets_the_tools_that_a_message_calls():
    def reward(prompts, responses, **columns):
        asked.extend(prompts)
        return [0.0] * len(responses)

    asked: list[str] = []
    called = {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": {"a": 1}}]}
    sample = Sample([{"role": "user", "content": "1 + 1?"}, called], (Response("2"),))
    assert [each.responses[0].scores for each in scored([Answered(sample, (True,), {})], [reward])] == [(0.0,)]
    assert asked == ['1 + 1?\n[calls add({"a": 1})]']
