"""A client for endpoints that speak OpenAI's chat completions: vLLM's server, or one on the network.

Requests are cached by content, so a second run asks only what is missing. Temporary errors (429, 5xx, a broken
connection, a malformed answer) are retried after the time that the server names, or after twice the previous wait;
permanent ones become one line immediately.
"""

from __future__ import annotations

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

from rlhf_lightning.content_hashes import content_hash
from rlhf_lightning.errors import UserError, reason
from rlhf_lightning.judging.cache import AnswerCache
from rlhf_lightning.judging.posting import LONGEST_WAIT, TEMPORARY, retry_after, said
from rlhf_lightning.judging.usage import Usage
from rlhf_lightning.secret_text import remember, shown

_FIRST_CONTACT = 15.0  # seconds


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

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"judge.url: {shown(self.url)!r}; it must begin with http:// or https://, and end with /v1")
        if self.key:
            remember(self.key)
        self.usage = Usage()
        self._lock = threading.Lock()
        self._next = 0.0
        self._reached = False
        self._cache = AnswerCache(self.cache)

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
        return [_first_token(answer, tuple(verdicts), self._name) for answer in answers]

    @property
    def _name(self) -> str:
        return f"judge.url: {shown(self.url)}"

    def _body(self, question: str) -> dict[str, Any]:
        return {**self.settings, "model": self.model, "messages": [{"role": "user", "content": question}]}

    def _ask(self, bodies: Sequence[dict[str, Any]]) -> list[Any]:
        """Return the answers in order; known ones are not requested, and equal questions only once."""
        entries = [content_hash([self._address, body]) for body in bodies]
        answers = self._cache.get(entries)
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
            with urllib.request.urlopen(request, timeout=min(self.timeout, _FIRST_CONTACT)):
                pass
        except urllib.error.HTTPError:
            pass  # it need not list its models
        except OSError as error:
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
        wait, last = 1.0, ""
        for attempt in range(self.attempts):
            if attempt:
                self.usage.count(retries=1)
                self.sleep(min(wait, LONGEST_WAIT))
                wait *= 2
            self._keep_pace()
            try:
                answer = self._post(self._address, body)
            except urllib.error.HTTPError as error:
                last = f"HTTP {error.code}: {said(error)}"
                if error.code not in TEMPORARY:
                    raise UserError(f"{self._name}: {shown(last)}; check the model's name and the key") from error
                wait = max(wait, retry_after(error))
            except (OSError, _MalformedAnswerError) as error:
                last = reason(error)
            else:
                usage = answer.get("usage") or {}
                tokens = {name: usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")}
                self.usage.count(requests=1, **tokens)
                self._cache.put({entry: answer})
                return answer
        raise UserError(
            f"{self._name}: no answer in {self.attempts} attempts ({shown(last)}); check that the server is running"
        )

    def _post(self, address: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(address, json.dumps(body).encode("ascii"), self._headers())
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            content = response.read()
        try:
            answer = json.loads(content)
            choice = answer["choices"][0]
            whole = isinstance(choice["message"], dict)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _MalformedAnswerError(f"the answer is not a chat completion: {content[:80]!r}") from error
        if not whole:
            raise _MalformedAnswerError(f"the answer has no message: {content[:80]!r}")
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


def _text(answer: Any) -> str:
    return str(answer["choices"][0]["message"].get("content") or "")


def _first_token(answer: Any, verdicts: tuple[str, ...], name: str) -> tuple[float, ...]:
    try:
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        listed = [(str(each["token"]).strip(), float(each["logprob"])) for each in top]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"{name}: it gives no log-probabilities; judge by generated verdicts: judge.by=reasons"
        ) from error
    best = [max((value for token, value in listed if token == verdict), default=None) for verdict in verdicts]
    if all(value is None for value in best):
        raise UserError(
            f"{name}: none of {', '.join(verdicts)} is among the {len(listed)} most probable tokens of an "
            "answer; let it generate its verdicts: judge.by=reasons"
        )
    least = min(value for _, value in listed)
    return tuple(least if value is None else value for value in best)
