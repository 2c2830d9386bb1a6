"""The pages in a real browser: keys, mouse, dragging, no scripts, a narrow screen, accessibility, hostile responses."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from rlhf_lightning.feedback import Answer, FeedbackStore, Response, Task, task_id
from rlhf_lightning.feedback.pages import make_app

pytestmark = pytest.mark.browser

PATIENCE = 30_000  # milliseconds until a page must show what is expected
HOSTILE = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"> "
    "[click](javascript:document.title='owned') \x1b[31mred"
)
LINE = "x = 1  # a line of code that is far too long for a narrow screen and has to scroll\n"
CODE = f"```python\n{LINE}{LINE}```\n\n| a | b |\n|---|---|\n| 1 | 2 |"


def task(kind: str, prompt: Any, *texts: str) -> Task:
    return Task(task_id(kind, prompt, texts), kind, prompt, tuple(map(Response, texts)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-browser installs it")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def store(url: str) -> Iterator[FeedbackStore]:
    with FeedbackStore(url) as store:
        yield store


@contextlib.contextmanager
def serving(app: Any, port: int = 0) -> Iterator[tuple[str, int]]:
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    taken = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{taken}", taken
    server.should_exit = True
    thread.join()


@pytest.fixture
def address(store: FeedbackStore) -> Iterator[str]:
    with serving(make_app(store, tokens=True, owner_token="owner")) as (address, _):
        yield address


def enter(context: Any, address: str, token: str) -> Any:
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/enter/{token}")
    page.click("text=Start labelling")
    return page


def shows(page: Any, answered: int) -> None:
    page.wait_for_selector(f"#judged:text-is('{answered}')")


def is_accessible(page: Any) -> None:
    """Check that axe-core finds no serious violation in light or dark, and nothing is wider than the screen."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-browser installs it").Axe()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = [each for each in axe.run(page).response["violations"] if each["impact"] in ("serious", "critical")]
        assert not found, found
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_two_labelers_at_once_by_keys_and_by_mouse(browser: Any, store: FeedbackStore, address: str) -> None:
    store.add_tasks([task("pair", f"Question {i}", f"Answer {i}", f"Another {i}") for i in range(20)])
    tokens = [store.add_labeler(name) for name in ("ana", "bo")]
    keys, mouse = browser.new_context(), browser.new_context()
    ana, bo = enter(keys, address, tokens[0]), enter(mouse, address, tokens[1])
    for i in range(10):
        ana.keyboard.press("1234567n12"[i])
        bo.click(["text=Tie", "text=B is much better"][i % 2])
        shows(ana, i + 1)
        shows(bo, i + 1)
        if i == 4:
            ana.keyboard.press("u")
            shows(ana, 4)
            ana.close()
            ana = keys.new_page()
            ana.set_default_timeout(PATIENCE)
            ana.goto(address)  # comes back without a link
            ana.keyboard.press("5")
            shows(ana, 5)
    for page in (ana, bo):
        page.wait_for_selector("text=Nothing left")
    judged = list(store.judgements())
    assert len({judgement.task for judgement in judged}) == len(judged) == 20
    assert store.count_judgements() == 22
    mine = [judgement.answer for judgement in judged if judgement.labeler == "ana"]
    assert [answer.verdict for answer in mine].count("neither") == 1
    assert (mine[0].choice, mine[0].strength) == (0, 3)
    keys.close()
    mouse.close()


def test_a_ranking_by_dragging_and_by_keys(browser: Any, store: FeedbackStore, address: str) -> None:
    store.add_tasks([task("ranking", "Rank", "first", "second", "third", "fourth")])
    context = browser.new_context()
    page = enter(context, address, store.add_labeler("ana"))
    page.focus("#answer-3 .handle")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("1")
    start, end = page.locator("#answer-0 .handle").bounding_box(), page.locator("#answer-2").bounding_box()
    page.mouse.move(start["x"] + 5, start["y"] + 5)
    page.mouse.down()
    page.mouse.move(start["x"] + 5, end["y"] + end["height"] + 4, steps=12)
    page.mouse.up()
    is_accessible(page)
    page.keyboard.press("Enter")
    shows(page, 1)
    (judgement,) = store.judgements()
    assert judgement.answer.ranks == (4, 2, 3, 1)
    context.close()


def test_without_scripts_on_a_narrow_screen(browser: Any, store: FeedbackStore, address: str) -> None:
    store.add_tasks(
        [task("pair", [{"role": "user", "content": CODE}], CODE, "short"), task("ranking", "R", "a", "b", "c")]
    )
    context = browser.new_context(java_script_enabled=False, viewport={"width": 360, "height": 740})
    page = enter(context, address, store.add_labeler("ana"))
    page.click("text=Scores, flags and a note")
    page.fill("#note", "by hand")
    page.click("button[value=b2]")
    shows(page, 1)
    page.select_option("#rank-0", "2")
    page.select_option("#rank-1", "1")
    page.click("button[value=ranking]")
    shows(page, 2)
    pair, ranking = store.judgements()
    assert (pair.answer.choice, pair.answer.note, ranking.answer.ranks) == (1, "by hand", (2, 1, 3))
    context.close()


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_of_a_response_runs_and_every_page_is_accessible(
    browser: Any, store: FeedbackStore, address: str, width: int
) -> None:
    store.add_tasks([task("pair", HOSTILE, HOSTILE, CODE)])
    context = browser.new_context(viewport={"width": width, "height": 800})
    errors: list[str] = []
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on("dialog", lambda dialog: errors.append(dialog.message))
    page = enter(context, address, store.add_labeler("ana"))
    page.on("pageerror", lambda error: errors.append(str(error)))
    is_accessible(page)
    assert page.title() == "Which answer is better?"
    assert page.locator(".text script, .text img, .text a").count() == 0
    assert "\\x1b[31mred" in page.locator("#answer-0").inner_text()
    page.click("#answer-0 >> text=click")  # of the text that must not become a link
    assert page.title() == "Which answer is better?"
    page.goto(f"{address}/guidelines")
    is_accessible(page)
    page.goto(f"{address}/owner/enter/owner")
    is_accessible(page)
    store.record("ana", next(iter(store.tasks())).id, Answer("tie"))
    page.wait_for_selector("text=1 of 1 tasks are finished")  # without a reload
    assert not errors
    assert all(url.startswith(address) for url in asked), asked
    context.close()


def test_a_page_that_was_open_while_the_server_was_started_again_is_taken(browser: Any, store: FeedbackStore) -> None:
    """With personal links as `rlhf-label` prints them on this machine: names, which a new server knows."""
    store.add_tasks([task("pair", f"Question {i}", f"Answer {i}", f"Another {i}") for i in range(2)])
    store.add_labeler("ana", link=False)
    with serving(make_app(store)) as (first, port):
        context = browser.new_context(viewport={"width": 360, "height": 740})
        page = enter(context, first, "ana")
        is_accessible(page)
    with serving(make_app(store), port):
        page.keyboard.press("1")
        shows(page, 1)
        assert "; 0 waiting" in page.inner_text(".who")
        context.close()
    assert store.count_judgements() == 1
