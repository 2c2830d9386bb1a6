"""The labelling page and the owner's page, without a browser: what is sent, what is refused, what is inert."""

from __future__ import annotations

import re
import sqlite3
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.links import labeler_links
from rlhf_lightning.feedback.pages import make_app
from rlhf_lightning.feedback.pages.access import HEADERS
from rlhf_lightning.feedback.pages.markdown import render_markdown
from rlhf_lightning.feedback.records import Answer, Response, Task

HERE = "http://127.0.0.1:8000"


class Form(HTMLParser):
    """The hidden fields of a page, the names of its inputs, and what its buttons send."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fields, self.buttons, self.labels, self.ids = {}, [], set(), {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "input" and values.get("type") == "hidden":
            self.fields[values["name"]] = values["value"]
        if tag == "button" and "value" in values:
            self.buttons.append(values["value"])
        if tag == "label" and "for" in values:
            self.labels.add(values["for"])
        if tag in ("select", "textarea", "progress"):
            self.ids[values.get("id")] = tag


def client(app, **settings):
    return TestClient(app, base_url=settings.pop("base_url", HERE), **settings)


@pytest.fixture
def tasks(pair):
    return [pair(f"task {i}") for i in range(4)]


@pytest.fixture
def labelled(store, tasks):
    store.add_tasks(tasks)
    return store


@pytest.fixture
def ana(labelled):
    """Return a browser in which ana has opened her link."""
    token = labelled.add_labeler("ana")
    browser = client(make_app(labelled, tokens=True))
    assert browser.get(f"/enter/{token}").url.path == "/guidelines"
    return browser


def send(browser, answer, page=None, headers=None, **more):
    fields = Form(page or browser.get("/").text).fields
    return browser.post("/answer", data={**fields, "answer": answer, **more}, headers=headers)


@pytest.mark.parametrize(
    ("sent", "verdict", "choice", "strength"),
    [("a3", "choice", 0, 3), ("b1", "choice", 1, 1), ("tie", "tie", None, None), ("neither", "neither", None, None)],
)
def test_a_plain_form_is_a_judgement(ana, labelled, sent, verdict, choice, strength):
    page = ana.get("/").text
    assert sent in Form(page).buttons
    more = {"flag": ["unsafe", "no such flag"], "note": "line\r\nline", "score_1_helpful": "4", "score_0_humour": "5"}
    assert send(ana, sent, page, **more).url.path == "/"
    (judgement,) = labelled.judgements()
    answer = judgement.answer
    assert (answer.verdict, answer.choice, answer.strength) == (verdict, choice, strength)
    assert (answer.flags, answer.note, answer.scores) == (("unsafe",), "line\nline", {"B.helpful": 4})
    assert judgement.labeler == "ana"


def test_a_ranking_is_sent_by_its_selects(ana, labelled):
    ranking = Task("order", "ranking", [{"role": "user", "content": "Rank"}], tuple(map(Response, "abc")))
    labelled.add_tasks([ranking])
    for _ in range(4):
        send(ana, "skip")
    page = ana.get("/").text
    assert "user" in page
    assert send(ana, "ranking", page, rank_0="3", rank_1="1", rank_2="").status_code == 409
    send(ana, "ranking", page, rank_0="3", rank_1="1", rank_2="1")
    *_, judgement = labelled.judgements()
    assert judgement.answer.ranks == (2, 1, 1)
    assert "Nothing left" in ana.get("/").text


def test_undo_brings_the_task_back(ana, labelled):
    task = Form(ana.get("/").text).fields["task"]
    send(ana, "a1")
    page = ana.get("/").text
    assert Form(page).fields["task"] != task
    assert ana.post("/undo", data={"csrf": Form(page).fields["csrf"]}).status_code == 200
    assert Form(ana.get("/").text).fields["task"] == task
    assert list(labelled.judgements()) == []


def test_a_form_sent_twice_counts_once_and_an_old_one_is_refused(ana, labelled):
    page = ana.get("/").text
    assert [send(ana, "a1", page).status_code for _ in range(2)] == [200, 200]
    assert labelled.count_judgements() == 1
    fields = {**Form(page).fields, "key": "another", "answer": "b1"}
    refused = ana.post("/answer", data=fields)
    assert refused.status_code == 409
    assert "has answered it already" in refused.text
    assert labelled.count_judgements() == 1


def test_two_browsers_get_different_tasks(ana, labelled):
    token = labelled.add_labeler("bo")
    bo = client(make_app(labelled, tokens=True))
    bo.get(f"/enter/{token}")
    assert Form(ana.get("/").text).fields["task"] != Form(bo.get("/").text).fields["task"]


@pytest.mark.parametrize(
    ("change", "headers", "status"),
    [
        ({"csrf": "0" * 64}, {}, 403),
        ({"csrf": ""}, {}, 403),
        ({}, {"origin": "http://elsewhere.example"}, 403),
        ({}, {"origin": "null"}, 403),
        ({}, {"origin": "http://["}, 403),
        ({}, {"sec-fetch-site": "cross-site"}, 403),
        ({}, {"sec-fetch-site": "same-site"}, 403),
        ({"answer": "c3"}, {}, 409),
        ({"answer": "ranking"}, {}, 409),
        ({"answer": "ranking", "rank_0": "2", "rank_1": "1"}, {}, 409),
        ({"task": "0" * 24}, {}, 409),
        ({"note": "x" * 2001}, {}, 409),
        ({"note": "x" * 70_000}, {}, 409),
        ({}, {"origin": HERE, "sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_what_another_page_sends_or_what_cannot_be_is_refused(ana, labelled, change, headers, status):
    fields = {**Form(ana.get("/").text).fields, "answer": "a1", **change}
    response = ana.post("/answer", data=fields, headers=headers)
    assert response.status_code == status
    assert labelled.count_judgements() == (status == 200)
    assert "Traceback" not in response.text


def test_a_task_of_somebody_else_cannot_be_answered(ana, labelled, tasks):
    fields = Form(ana.get("/").text).fields
    other = next(task.id for task in tasks if task.id != fields["task"])
    refused = ana.post("/answer", data={**fields, "task": other, "answer": "a1"})
    assert "was not given it" in refused.text
    assert labelled.count_judgements() == 0


def test_without_a_token_nothing_is_shown_or_taken(labelled, tasks):
    stranger = client(make_app(labelled, tokens=True))
    page = stranger.get("/")
    assert page.status_code == 401
    assert "task 0" not in page.text
    assert stranger.get("/enter/guess").status_code == 403
    assert stranger.post("/answer", data={"answer": "a1", "task": tasks[0].id}).status_code == 401
    assert stranger.post("/choose", data={"name": "ana"}).status_code == 403
    assert stranger.get("/owner").status_code == 404
    stranger.cookies.set("rlhf_labeler", "ana:forged")
    assert stranger.get("/").status_code == 401


def test_a_cookie_is_out_of_reach_of_scripts_and_a_new_token_ends_it(labelled):
    token = labelled.add_labeler("ana")
    browser = client(make_app(labelled, tokens=True), follow_redirects=False)
    cookie = browser.get(f"/enter/{token}").headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert browser.get("/").status_code == 200
    labelled.add_labeler("ana")
    assert browser.get("/").status_code == 401


def test_beyond_this_machine_tokens_are_needed(labelled):
    with pytest.raises(UserError, match=r"0\.0\.0\.0 can be reached from other machines"):
        make_app(labelled, host="0.0.0.0", tokens=False)
    assert client(make_app(labelled, host="0.0.0.0"), base_url="http://box:80").get("/").status_code == 401


def test_on_this_machine_a_name_is_enough_but_not_for_other_sites(labelled):
    labelled.add_labeler("ana")
    app = make_app(labelled)
    browser = client(app)
    assert "<option>ana</option>" in browser.get("/").text
    assert browser.post("/choose", data={"name": "ana"}, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert browser.post("/choose", data={"name": "eve"}).status_code == 403
    assert "Which answer is better?" in browser.post("/choose", data={"name": "ana"}).text
    assert send(browser, "a1").status_code == 200
    for host in ("turned.example", "[", "127.0.0.1.turned.example"):
        assert client(app).get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    ("host", "address", "local"),
    [
        ("127.0.0.1", None, True),
        ("127.0.0.1", "http://localhost:9000", True),
        ("127.0.0.1", "https://label.example.org", False),
        ("0.0.0.0", "http://localhost:8471", False),
        ("::", "http://[::1]:8471", False),
        ("192.0.2.7", "http://127.0.0.1:8471", False),
    ],
)
def test_a_name_is_enough_only_where_host_and_address_are_of_this_machine(labelled, host, address, local):
    labelled.add_labeler("ana")
    browser = client(make_app(labelled, host=host, url=address), base_url="http://localhost:8471")
    assert browser.get("/enter/ana").status_code == (200 if local else 403)
    assert browser.get("/").status_code == (200 if local else 401)
    assert browser.get("/owner").status_code == (200 if local else 404)
    if not local:
        with pytest.raises(UserError, match="can be reached from other machines"):
            make_app(labelled, host=host, url=address, tokens=False)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://label.example.org", 200),
        ("https://label.example.org:443", 200),
        ("http://label.example.org", 403),
        ("https://label.example.org:8443", 403),
        ("https://label.example.org.evil.example", 403),
        ("https://elsewhere.example", 403),
        ("http://[", 403),
        ("null", 403),
    ],
)
def test_behind_a_proxy_forms_come_from_its_address_whatever_host_it_passes_on(labelled, origin, status):
    token = labelled.add_labeler("ana")
    browser = client(make_app(labelled, url="https://label.example.org"))  # the host is 127.0.0.1:8000
    page = browser.get(f"/enter/{token}") and browser.get("/").text
    assert send(browser, "a1", page, {"origin": origin}).status_code == status
    assert labelled.count_judgements() == (status == 200)


def test_a_skip_is_undone_without_its_task_where_somebody_else_has_it(store, pair):
    store.add_tasks([pair("only")])
    for name in ("ana", "bo"):
        store.add_labeler(name, link=False)
    ana, bo = (client(make_app(store)) for _ in range(2))
    page = ana.get("/enter/ana") and ana.get("/").text
    send(ana, "skip", page)
    assert "only" in (bo.get("/enter/bo") and bo.get("/").text)
    said = ana.post("/undo", data={"csrf": Form(page).fields["csrf"]})
    assert (said.status_code, "Somebody else has that task now" in said.text) == (200, True)
    assert "Nothing left" in ana.get("/").text
    send(bo, "skip")
    assert "only" in ana.get("/").text


def test_the_tools_that_a_message_calls_are_shown(ana, labelled):
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"place": "Köln"}}}]
    prompt = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    ana.post("/undo", data={"csrf": Form(ana.get("/").text).fields["csrf"]})
    labelled.add_tasks([Task("tools", "pair", prompt, (Response("yes"), Response("no")))])
    for _ in range(4):
        send(ana, "tie")
    page = ana.get("/").text
    assert "[calls weather({&quot;place&quot;: &quot;Köln&quot;})]" in page
    assert "None" not in page


def test_every_answer_has_the_headers(ana):
    for path in ("/", "/guidelines", "/owner", "/static/label.js", "/nowhere"):
        headers = ana.get(path).headers
        assert {name: headers.get(name) for name in HEADERS} == HEADERS
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert ana.get("/").headers["cache-control"] == "no-store"
    for path in ("/docs", "/openapi.json", "/static/../app.py"):
        assert ana.get(path).status_code == 404


def test_pages_need_no_inline_script_or_style_and_label_what_they_ask(ana, labelled):
    labelled.add_tasks([Task("order", "ranking", "Rank", tuple(map(Response, "abc")))])
    for _ in range(5):
        page = ana.get("/").text
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! src=)", page)
        form = Form(page)
        assert set(form.ids) <= form.labels
        send(ana, "skip")


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt&colon;alert(1))",
    "[a](data:text/html,<script>alert(1)</script>)",
    "[a](vbscript:x)",
    "<javascript:alert(1)>",
    "![a](https://elsewhere.example/x.png)",
    "[a][b]\n\n[b]: javascript:alert(1)",
    "[a](//elsewhere.example)",
    "```<script>\n</code></pre><script>alert(1)</script>\n```",
    "    </code></pre><script>alert(1)</script>",
    "`<script>`",
    '[a](https://x.example "t\\" onmouseover=alert(1)")',
    "\x1b]0;title\x07\x1b[31mred \u202egnihtyna",
    "| <script> |\n|---|\n| <img src=x onerror=1> |",
    "&lt;script&gt;",
    "x" * 100_001 + "<script>",
]


ALLOWED = {"p", "a", "pre", "code", "em", "strong", "s", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "br"}


class Dangers(HTMLParser):
    """Collects what a piece of HTML could run or load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in ALLOWED:
            self.found.append(tag)
        for name, value in attrs:
            if name == "href" and not value.startswith(("http://", "https://")):
                self.found.append(value)
            if name not in ("href", "rel", "target", "tabindex", "title", "start"):
                self.found.append(name)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_response_contains_does_nothing(text):
    page = str(render_markdown(text))
    assert Dangers(page).found == []
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_what_a_response_means_is_shown():
    page = render_markdown("**b** `c` [a](https://x.example)\n\n- 1\n\n```python\nx < 1\n```\n\n| t |\n|---|\n| 1 |")
    for part in ("<strong>b</strong>", "<code>c</code>", "<li>1</li>", "x &lt; 1", "<td>1</td>"):
        assert part in page
    assert '<a href="https://x.example" rel="noopener noreferrer nofollow" target="_blank">a</a>' in page
    assert "\\x1b[31mred" in render_markdown("\x1b[31mred")


def test_a_hostile_task_is_shown_on_the_page_without_effect(ana, labelled):
    for _ in range(4):
        send(ana, "skip")
    hostile = Task(
        "h", "pair", HOSTILE[0], (Response(HOSTILE[1], "secret-policy"), Response("'\"></textarea>" + HOSTILE[0]))
    )
    labelled.add_tasks([hostile])
    page = ana.get("/").text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in page
    assert "<img" not in page
    assert "secret-policy" not in page


def test_the_owner_sees_progress_and_agreement(labelled):
    app = make_app(labelled, tokens=True, owner_token="owner-secret")
    owner = client(app)
    assert owner.get("/owner").status_code == 404
    assert owner.get("/owner/enter/guess").status_code == 404
    labelled.add_labeler("ana")
    labelled.record("ana", labelled.next_task("ana").id, Answer("choice", 0, 2))
    page = owner.get("/owner/enter/owner-secret").text
    assert "1 of 4 tasks are finished" in page
    assert re.search(r'<th scope="row">ana</th><td>person</td><td>1</td><td>1</td>', page)
    assert client(make_app(labelled)).get("/owner").status_code == 200


def test_guidelines_may_be_ones_own(labelled):
    assert "<h1>Ours</h1>" in client(make_app(labelled, "# Ours\n\n<script>x</script>")).get("/guidelines").text
    assert "harmless comes before honest" in client(make_app(labelled)).get("/guidelines").text


def test_a_locked_store_is_one_line_and_the_form_can_be_sent_again(ana, labelled, url):
    page = ana.get("/").text
    holder = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    refused = send(ana, "a1", page)
    assert refused.status_code == 503
    assert "locked by another process" in refused.text
    holder.execute("ROLLBACK")
    holder.close()
    assert send(ana, "a1", page).status_code == 200
    assert labelled.count_judgements() == 1


def test_nobody_enters_or_gets_a_link_in_a_models_name(labelled):
    labelled.add_labeler("judge", "model", link=False)
    with pytest.raises(UserError, match="labelers: judge is known as a model"):
        labeler_links(labelled, ["bo", "judge"], HERE, tokens=False)
    assert [each.name for each in labelled.labelers()] == ["judge"]
    browser = client(make_app(labelled, host="127.0.0.1", tokens=False))
    assert browser.get("/enter/judge").status_code == browser.get("/enter/nobody").status_code != 200
    labelled.add_labeler("sim", "simulated", link=False)
    assert "<option>" not in browser.get("/").text
    assert browser.post("/choose", data={"name": "judge"}).status_code == 403
