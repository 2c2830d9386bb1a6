"""The web application: labelers judge, and the owner watches."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from rlhf_lightning.errors import DiskError, UserError
from rlhf_lightning.feedback.agreement import AgreementReport, agreement_report
from rlhf_lightning.feedback.pages.access import (
    HEADERS,
    LABELER,
    OWNER,
    Access,
    form_token,
    is_foreign,
    is_local,
    new_session,
)
from rlhf_lightning.feedback.pages.forms import Form, answer_of, letter, posted
from rlhf_lightning.feedback.pages.markdown import render_markdown
from rlhf_lightning.feedback.progress import Pace, pace, progress
from rlhf_lightning.feedback.records import Labeler, Prompt
from rlhf_lightning.feedback.store import FeedbackStore
from rlhf_lightning.message_text import message_text
from rlhf_lightning.outside_text import for_terminal, on_one_line

_HERE = Path(__file__).parent
GUIDELINES = _HERE / "templates" / "guidelines.md"
CRITERIA = ("helpful", "honest", "harmless")
FLAGS = ("unsafe", "wrong facts", "not in the language asked", "cannot be judged")
SEE_OTHER = 303
_FRESH = 5.0  # minimum seconds between two computations of the agreement


def make_app(
    store: FeedbackStore,
    guidelines: str | None = None,
    *,
    host: str = "127.0.0.1",
    url: str | None = None,
    tokens: bool | None = None,
    owner_token: str | None = None,
    criteria: Sequence[str] = CRITERIA,
    flags: Sequence[str] = FLAGS,
) -> FastAPI:
    """Return the web application of a store.

    Args:
        store: has the tasks and labelers.
        guidelines: Markdown shown to labelers; None: the default guidelines.
        host: the host that the server is bound to.
        url: the address by which browsers reach the server, if it is another one: a proxy's, for example.
        tokens: whether labelers enter through personal links, `/enter/TOKEN`; None: unless only this machine can reach
            the server.
        owner_token: the owner's page is entered through `/owner/enter/TOKEN`; None: it exists only if no tokens are
            needed.
        criteria: criteria that may be scored from 1 to 5.
        flags: flags that may be set.

    Raises:
        UserError: the host or the address can be reached from other machines, and `tokens` is false.
    """
    access = Access(store, host, not is_local(host, url) if tokens is None else tokens, owner_token, url)
    text = GUIDELINES.read_text(encoding="utf-8") if guidelines is None else guidelines
    pages = _Pages(store, access, text, tuple(criteria), tuple(flags))
    app = FastAPI(title="rlhf-lightning", docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    for path, page in (
        ("/", pages.task),
        ("/guidelines", pages.read_guidelines),
        ("/enter/{token}", pages.enter),
        ("/owner", pages.owner),
        ("/owner/enter/{token}", pages.enter_owner),
    ):
        app.add_api_route(path, page, methods=["GET"], response_class=HTMLResponse)
    for path, action in (("/answer", pages.answer), ("/undo", pages.undo), ("/choose", pages.choose)):
        app.add_api_route(path, action, methods=["POST"], response_class=HTMLResponse)
    app.add_exception_handler(UserError, pages.refused)
    app.add_exception_handler(StarletteHTTPException, pages.refused)
    app.middleware("http")(_guarded(access))
    return app


def _guarded(access: Access) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    async def guard(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        if not access.is_known_host(request):
            response: Response = Response("unknown host", 421, media_type="text/plain")
        else:
            response = await call(request)
        response.headers.update(HEADERS)
        if not request.url.path.startswith("/static/"):
            response.headers["Cache-Control"] = "no-store"
        return response

    return guard


@dataclass
class _Pages:
    store: FeedbackStore
    access: Access
    guidelines: str
    criteria: tuple[str, ...]
    flags: tuple[str, ...]

    def __post_init__(self) -> None:
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined
        )
        self._templates.filters.update(markdown=render_markdown, letter=letter, shown=for_terminal)
        self._agreement = _Remembered(self.store)
        self._paces: dict[str, tuple[float, Pace]] = {}

    def task(self, request: Request) -> Response:
        labeler = self.access.labeler(request)
        if labeler is None:
            names = [] if self.access.tokens else [each.name for each in self.access.people()]
            return self._page("enter.html", request, status=401 if self.access.tokens else 200, names=names)
        return self._page(
            "label.html",
            request,
            labeler=labeler,
            task=self.store.next_task(labeler.name),
            pace=self._pace(labeler.name),
            messages=_messages,
            key=secrets.token_hex(16),
            criteria=self.criteria,
            flags=self.flags,
        )

    def _pace(self, labeler: str) -> Pace:
        """Return the pace, recomputed at most once in `_FRESH` seconds: it counts all waiting tasks."""
        now = time.monotonic()
        until, found = self._paces.get(labeler, (0.0, None))
        if found is None or now > until:
            found = pace(self.store, labeler)
            self._paces[labeler] = (now + _FRESH, found)
        return found

    def answer(self, request: Request, form: Form = Depends(posted)) -> Response:  # noqa: B008
        labeler = self._sender(request, form)
        said = answer_of(form, self.criteria, self.flags)
        self.store.record(labeler.name, form.one("task"), said, form.one("key")[:64] or None, assigned_only=True)
        return RedirectResponse("/", SEE_OTHER)

    def undo(self, request: Request, form: Form = Depends(posted)) -> Response:  # noqa: B008
        name = self._sender(request, form).name
        undone = self.store.undo(name)
        shown = self.store.next_task(name)
        if undone is not None and (shown is None or shown.id != undone):
            text = "The skip is undone. Somebody else has that task now, so it does not come back to you."
            return self._page("message.html", request, title="Undone", text=text)
        return RedirectResponse("/", SEE_OTHER)

    def choose(self, request: Request, form: Form = Depends(posted)) -> Response:  # noqa: B008
        """Enter by name, on the local machine."""
        name = form.one("name")
        if self.access.tokens or is_foreign(request) or name not in {each.name for each in self.access.people()}:
            raise HTTPException(403, "Enter by your personal link.")
        response = RedirectResponse("/", SEE_OTHER)
        self.access.begin(request, response, LABELER, new_session(name))
        return response

    def enter(self, request: Request, token: str) -> Response:
        labeler = self.access.labeler_of_link(request, token)
        if labeler is None:
            raise HTTPException(403, "This link is not known. Ask whoever gave it to you for a new one.")
        response = RedirectResponse("/guidelines", SEE_OTHER)
        self.access.begin(request, response, LABELER, token if self.access.tokens else new_session(labeler.name))
        return response

    def read_guidelines(self, request: Request) -> Response:
        return self._page("guidelines.html", request, labeler=self.access.labeler(request), text=self.guidelines)

    def owner(self, request: Request) -> Response:
        if not self.access.is_owner(request):
            raise HTTPException(404, "There is nothing here.")
        return self._page("owner.html", request, progress=progress(self.store), agreement=self._agreement.report())

    def enter_owner(self, request: Request, token: str) -> Response:
        if not self.access.is_owner_token(token):
            raise HTTPException(404, "There is nothing here.")
        response = RedirectResponse("/owner", SEE_OTHER)
        self.access.begin(request, response, OWNER, token)
        return response

    def refused(self, request: Request, error: Exception) -> Response:
        """Return one line about what went wrong; acknowledged judgements stay acknowledged."""
        if isinstance(error, StarletteHTTPException):
            status, said = error.status_code, str(error.detail)
        else:
            unavailable = isinstance(error, DiskError) or str(error).startswith("feedback.store")
            status, said = (503 if unavailable else 409), str(error)
        return self._page("message.html", request, status=status, title="That did not work", text=on_one_line(said))

    def _sender(self, request: Request, form: Form) -> Labeler:
        labeler = self.access.labeler(request)
        if labeler is None:
            raise HTTPException(401, "Enter by your personal link first. Nothing was saved.")
        if not self.access.is_own_form(request, form.one("csrf")):
            raise HTTPException(403, "This form was not sent from the labelling page. Reload it and answer again.")
        return labeler

    def _page(self, template: str, request: Request, status: int = 200, **values: Any) -> HTMLResponse:
        values = {"labeler": None, "pace": None, "csrf": form_token(request), **values}
        return HTMLResponse(self._templates.get_template(template).render(**values), status)


class _Remembered:
    """The agreement, recomputed at most once in `_FRESH` seconds, or in ten times as long as it takes."""

    def __init__(self, store: FeedbackStore) -> None:
        self._store, self._lock = store, threading.Lock()
        self._report: AgreementReport | None = None
        self._until = 0.0

    def report(self) -> AgreementReport:
        with self._lock:
            start = time.monotonic()
            if self._report is None or start > self._until:
                kinds = {labeler.name: labeler.kind for labeler in self._store.labelers()}
                self._report = agreement_report(self._store.tasks(), self._store.judgements(), kinds, draws=200)
                end = time.monotonic()
                self._until = end + max(_FRESH, 10 * (end - start))
            return self._report


def _messages(prompt: Prompt) -> list[tuple[str, str]]:
    """Return (speaker, text) of each message."""
    if isinstance(prompt, str):
        return [("", prompt)]
    return [(str(message.get("role", "")), message_text(message)) for message in prompt]
