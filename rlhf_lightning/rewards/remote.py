"""A reward behind an address: a request with prompts, completions and columns as JSON, answered with numbers.

The request is `{"prompts": [...], "completions": [...], "columns": {...}}`, conversations as lists of messages. The
answer is a list with one number per completion, null where none applies, or an object with it under `scores` or
`rewards`.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlhf_lightning.addresses import check_address
from rlhf_lightning.errors import UserError, key_beside, reason
from rlhf_lightning.judging.posting import OPENER, TEMPORARY, Wait, redirected, said
from rlhf_lightning.rewards.concurrent import ATTEMPTS, CONCURRENCY, FIRST_WAIT
from rlhf_lightning.rewards.keywords import keywords
from rlhf_lightning.rewards.protocol import Reward
from rlhf_lightning.rewards.scores import Partial, Scores, check_partial, filled
from rlhf_lightning.secret_text import remember, shown

TIMEOUT = 120.0  # seconds per attempt, if a config says nothing
LARGEST_ANSWER = 64 * 2**20  # bytes


class _BadAnswerError(UserError):
    """An answer that would be the same at the next attempt."""


class RemoteReward(Reward):
    """Scores by a server's answers (see the module).

    Args:
        url: the address that requests are sent to, by POST.
        batch_size: responses per request.
        timeout: seconds per attempt; None: 120.
        concurrency: requests at the same time; None: 16.
        attempts: attempts per request after errors that pass (a lost connection, HTTP 429 and 5xx); None: 3.
        key_env: the environment variable with a key, sent as a bearer token; None: no key.
        sleep: replaced in tests.

    Raises:
        UserError: it is not an address, or the environment variable is not set.
    """

    def __init__(
        self,
        url: str,
        batch_size: int = 32,
        timeout: float | None = None,
        concurrency: int | None = None,
        attempts: int | None = None,
        key_env: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name, self.key, self.url = shown(url), key_beside("url", "reward."), url
        check_address(
            self.key,
            url,
            "http://localhost:8000/score",
            query=True,
            log_in=f"give a key by {key_beside('key_env', 'reward.')}",
        )
        self.batch_size, self.timeout = batch_size, timeout or TIMEOUT
        self.concurrency, self.attempts, self.sleep = concurrency or CONCURRENCY, attempts or ATTEMPTS, sleep
        self.headers = {"Content-Type": "application/json"}
        if key_env is not None:
            token = os.environ.get(key_env)
            if not token:
                key = key_beside("key_env", "reward.")
                raise UserError(f"{key}: the environment variable {key_env} is not set; export it, or set it to null")
            remember(token)
            self.headers["Authorization"] = f"Bearer {token}"

    @property
    def _who(self) -> str:
        return f"{self.key}: {self.name}"

    def origin(self) -> dict[str, str]:
        """Return the address; what answers there cannot be known."""
        return {self.key: self.name}

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> Scores:
        return filled(self.begin(prompts, responses, **columns)())

    def begin(self, prompts: list[str], responses: list[str], **columns: Any) -> Callable[[], Partial]:
        """Send the requests, and return a function that waits for the answers.

        Raises:
            UserError: by that function: no answer in all attempts, or one that is not a number for each completion.
        """
        given = keywords(prompts, responses, columns, None, ())
        starts = range(0, len(responses), self.batch_size)
        bodies = [{name: x[i : i + self.batch_size] for name, x in given.items()} for i in starts]
        pool = ThreadPoolExecutor(self.concurrency)
        pending = [pool.submit(self._scores, body) for body in bodies]

        def wait() -> Partial:
            try:
                return [score for each in pending for score in each.result()]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

        return wait

    def _scores(self, given: dict[str, Any]) -> Partial:
        texts = {name: given[name] for name in ("prompts", "completions")}
        columns = {name: x for name, x in given.items() if name not in texts}
        try:
            body = json.dumps({**texts, "columns": columns}, default=str, allow_nan=False).encode("ascii")
        except ValueError as error:
            raise UserError(f"{self._who}: a column holds NaN or infinity, which JSON cannot express") from error
        content = self._answer(body)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _BadAnswerError(f"{self._who}: the answer is not JSON: {shown(repr(content[:80]))}") from error
        if isinstance(answer, dict):
            scores, rewards = answer.get("scores"), answer.get("rewards")
            if scores is not None and rewards is not None and scores != rewards:
                raise _BadAnswerError(
                    f"{self._who}: the answer has scores and rewards, which differ: {shown(repr(content[:80]))}; "
                    "answer with one of them"
                )
            answer = rewards if scores is None else scores
        if not isinstance(answer, list):
            raise _BadAnswerError(
                f"{self._who}: the answer has no list of numbers: {shown(repr(content[:80]))}; answer with a list, or "
                'with {"scores": [...]}'
            )
        return check_partial(answer, len(given["prompts"]), self.name, self.key)

    def _answer(self, body: bytes) -> bytes:
        wait, last = Wait(FIRST_WAIT), ""
        for attempt in range(self.attempts):
            if attempt:
                self.sleep(wait.next())
            try:
                return self._post(body)
            except urllib.error.HTTPError as error:
                last = f"HTTP {error.code}: {said(error)}"
                if (where := redirected(error)) is not None:
                    raise UserError(f"{self._who}: {where}") from error
                if error.code not in TEMPORARY:
                    raise UserError(f"{self._who}: {shown(last)}; check the address and the key") from error
                wait.heed(self._who, error)
            except (OSError, http.client.HTTPException) as error:
                last = reason(error)
        raise UserError(
            f"{self._who}: no answer in {self.attempts} attempt{'s' * (self.attempts > 1)} ({shown(last)}); check that "
            f"the server is running, or raise {key_beside('timeout', 'reward.')}"
        )

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(self.url, body, self.headers)
        end, content = time.monotonic() + self.timeout, b""
        with OPENER.open(request, timeout=self.timeout) as response:
            while part := response.read1(2**16):
                content += part
                if len(content) > LARGEST_ANSWER:
                    raise _BadAnswerError(f"{self._who}: the answer is larger than {LARGEST_ANSWER // 2**20} MiB")
                if time.monotonic() > end:  # the socket's own limit is per packet
                    raise TimeoutError(f"the answer is not complete after {self.timeout:g} s")
            if response.length:
                raise ConnectionError(f"the connection ended {response.length} bytes before the answer did")
        return content
