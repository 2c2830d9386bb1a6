"""A client for endpoints that speak OpenAI's chat completions: vLLM's server, or one on the network.

Requests are cached by content, so a second run asks only what is missing. Temporary errors (429, 5xx, a broken
connection, a malformed answer) are retried after the time that the server names, or after twice the previous wait,
up to a minute; permanent ones become one line immediately.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lightning.addresses import check_address
from rlhf_lightning.content_hashes import content_hash
from rlhf_lightning.errors import UserError, reason
from rlhf_lightning.judging.cache import AnswerCache
from rlhf_lightning.judging.posting import OPENER, TEMPORARY, Wait, redirected, said
from rlhf_lightning.judging.usage import Usage
from rlhf_lightning.secret_text import remember, shown

_FIRST_CONTACT = 15.0  # seconds
_MOST_TOKENS = 10**9  # of one answer; a larger count is not one
_COUNTED = ("prompt_tokens", "completion_tokens")
_ROUNDED_ZERO = 0.01  # the largest log-probability, in half precision
EXAMPLE = "http://localhost:8000/v1"


class _MalformedAnswerError(ValueError):
    """An answer of the endpoint that is not a chat completion."""


@dataclass
class ChatEndpoint:
    """A chat model to ask.

    Args:
        url: the address up to `/v1`.
        model: its name at the endpoint.
        key: sent as a bearer token; never shown in messages.
        cache: an SQLite file; None: nothing is stored.
        per_minute: the most requests per minute.
        parallel: requests at the same time.
        attempts: attempts per request before giving up.
        timeout: seconds per attempt.
        settings: sent with each request, such as `{"temperature": 0}`.
        sleep: replaced in tests.
        prefix: what the user writes before the settings' names.

    Raises:
        UserError: no request can be sent to the address, or the cache cannot be used.
    """

    url: str
    model: str
    key: str | None = None
    cache: str | Path | None = None
    per_minute: float = math.inf
    parallel: int = 8
    attempts: int = 6
    timeout: float = 120.0
    settings: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 512})
    sleep: Callable[[float], None] = time.sleep
    prefix: str = "judge."

    def __post_init__(self) -> None:
        check_address(f"{self.prefix}url", self.url, EXAMPLE)
        if self.key:
            remember(self.key)
        self.usage = Usage()
        self._lock = threading.Lock()
        self._next = 0.0
        self._reached = False
        self._cache = AnswerCache(self.cache, f"{self.prefix}cache")

    def generate(self, questions: Sequence[str]) -> list[str]:
        """Return the model's answer to each question."""
        bodies = [self._body(question) for question in questions]
        return [_text(answer) for answer in self._ask(bodies)]

    def logprobs(
        self, questions: Sequence[str], verdicts: Sequence[str] = ("A", "B"), lead: str = ""
    ) -> list[tuple[float, ...]]:
        """Return the log-probabilities of verdicts as the first token of each answer.

        A verdict outside the 20 most probable tokens has the probability of the last of them, an upper bound.

        Args:
            questions: asked one by one.
            verdicts: texts of one token.
            lead: ignored: an endpoint begins its answers itself.

        Raises:
            UserError: the endpoint returns no log-probabilities, or no verdict is among the most probable tokens.
        """
        more = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20, "temperature": 0.0}
        answers = self._ask([{**self._body(question), **more} for question in questions])
        return [self._first_token(answer, tuple(verdicts)) for answer in answers]

    @property
    def _name(self) -> str:
        return f"{self.prefix}url: {shown(self.url)}"

    def _body(self, question: str) -> dict[str, Any]:
        return {**self.settings, "model": self.model, "messages": [{"role": "user", "content": question}]}

    def _ask(self, bodies: Sequence[dict[str, Any]]) -> list[Any]:
        """Return the answers in order; known ones are not requested, and equal questions only once."""
        entries = [content_hash([self._address, body]) for body in bodies]
        answers = self._cache.get(entries, _is_completion)
        missing = {entry: body for entry, body in zip(entries, bodies, strict=True) if entry not in answers}
        self.usage.count(cached=len(bodies) - len(missing))
        if missing and not self._reached:
            self._reach()
        with ThreadPoolExecutor(self.parallel) as pool:
            pending = {entry: pool.submit(self._answer, entry, body) for entry, body in missing.items()}
            try:
                answers |= {entry: each.result() for entry, each in pending.items()}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [answers[entry] for entry in entries]

    def _reach(self) -> None:
        """Check once that something listens at the address, whatever it answers, so as not to wait for a dead endpoint.

        Raises:
            UserError: nothing does.
        """
        request = urllib.request.Request(f"{self.url.rstrip('/')}/models", headers=self._headers())
        try:
            with OPENER.open(request, timeout=min(self.timeout, _FIRST_CONTACT)):
                pass
        except urllib.error.HTTPError:
            pass  # it need not list its models
        except (OSError, http.client.HTTPException) as error:
            raise UserError(
                f"{self._name}: it does not answer ({reason(error)}); check that the server is running, and that the "
                "address is right"
            ) from error
        self._reached = True

    def _headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}

    @property
    def _address(self) -> str:
        return f"{self.url.rstrip('/')}/chat/completions"

    def _answer(self, entry: str, body: dict[str, Any]) -> Any:
        wait, last = Wait(1.0), ""
        for attempt in range(self.attempts):
            if attempt:
                self.usage.count(retries=1)
                self.sleep(wait.next())
            self._keep_pace()
            try:
                answer = self._post(self._address, body)
            except urllib.error.HTTPError as error:
                if (where := redirected(error)) is not None:
                    raise UserError(f"{self._name}: {where}") from error
                last = f"HTTP {error.code}: {said(error)}"
                if error.code not in TEMPORARY:
                    raise UserError(f"{self._name}: {shown(last)}; check the model's name and the key") from error
                wait.heed(self._name, error)
            except (OSError, http.client.HTTPException, _MalformedAnswerError) as error:
                last = reason(error)
            else:
                self.usage.count(requests=1, **_tokens(answer))
                self._cache.put({entry: answer})
                return answer
        raise UserError(
            f"{self._name}: no answer in {self.attempts} attempts ({shown(last)}); check that the server is running"
        )

    def _post(self, address: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(address, json.dumps(body).encode("ascii"), self._headers())
        with OPENER.open(request, timeout=self.timeout) as response:
            content = response.read()
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _MalformedAnswerError(f"the answer is not JSON: {content[:80]!r}") from error
        if not _is_completion(answer):
            raise _MalformedAnswerError(f"the answer is not a chat completion: {content[:80]!r}")
        return answer

    def _keep_pace(self) -> None:
        if math.isinf(self.per_minute):
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + 60.0 / self.per_minute
        if start > now:
            self.sleep(start - now)

    def _first_token(self, answer: Any, verdicts: tuple[str, ...]) -> tuple[float, ...]:
        advice = f"judge by generated verdicts: {self.prefix}by=reasons"
        try:
            top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            listed = [(str(each["token"]).strip(), float(each["logprob"])) for each in top]
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{self._name}: it gives no log-probabilities; {advice}") from error
        if not all(value <= _ROUNDED_ZERO for _, value in listed):
            raise UserError(f"{self._name}: it gives log-probabilities above 0, which cannot be right; {advice}")
        best = [max((value for token, value in listed if token == verdict), default=None) for verdict in verdicts]
        if all(value is None for value in best):
            raise UserError(
                f"{self._name}: none of {', '.join(verdicts)} is among the {len(listed)} most probable tokens of an "
                f"answer; {advice}"
            )
        least = min(value for _, value in listed)
        return tuple(least if value is None else value for value in best)


def _is_completion(answer: Any) -> bool:
    """Return whether an answer has a message; its text is null if the model says nothing."""
    try:
        message = answer["choices"][0]["message"]
    except (KeyError, IndexError, TypeError):
        return False
    return isinstance(answer, dict) and isinstance(message, dict) and isinstance(message.get("content"), str | None)


def _text(answer: Any) -> str:
    return answer["choices"][0]["message"].get("content") or ""


def _tokens(answer: Any) -> dict[str, int]:
    """Return the tokens that an answer has cost; what is not a count is ignored."""
    given = answer.get("usage")
    found = {name: given.get(name) for name in _COUNTED} if isinstance(given, dict) else {}
    return {name: count for name, count in found.items() if type(count) is int and 0 <= count <= _MOST_TOKENS}
