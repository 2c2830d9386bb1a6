"""Calls of `async` functions: many at once, each with a time limit, and repeated after an error.

They run in one event loop, in a thread of its own that lives as long as the process: a client that a user's module
keeps open stays usable between calls.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from rlhf_lightning.errors import UserError, left_by_hand, reason

CONCURRENCY, ATTEMPTS = 16, 3  # if a config says nothing
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before the second attempt, doubled after each
_SLACK = 5.0  # seconds for a loop that is busy

T = TypeVar("T")
log = logging.getLogger(__name__)
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process: a fork has no threads


@dataclass(frozen=True)
class Calls:
    """How calls are made.

    Attributes:
        who: what begins each message, such as `reward.function: my.fn`.
        late: the message about a call that takes too long.
        timeout: seconds per call; None: no limit.
        concurrency: calls at the same time.
        attempts: attempts per call.
    """

    who: str
    late: str
    timeout: float | None
    concurrency: int
    attempts: int

    def start(self, calls: Sequence[Callable[[], Awaitable[T]]]) -> Callable[[], list[T]]:
        """Begin the calls, and return a function that waits for their results, in order.

        Raises:
            UserError: by that function: a call has failed too often, or has not returned in time.
        """
        loop = _background_loop()
        future = asyncio.run_coroutine_threadsafe(self._all(calls), loop)
        longest = None if self.timeout is None else self._longest(len(calls)) + _SLACK

        def wait() -> list[T]:
            try:
                return future.result(longest)
            except concurrent.futures.TimeoutError:  # it blocks the loop, which is given up
                _loops.pop(os.getpid(), None)
                raise UserError(self.late) from None
            except concurrent.futures.CancelledError:  # a call has cancelled every task of the loop
                raise self._cancelled() from None
            finally:
                future.cancel()

        return wait

    def _longest(self, n: int) -> float:
        assert self.timeout is not None
        waits = sum(min(FIRST_WAIT * 2**i, LONGEST_WAIT) for i in range(self.attempts - 1))
        return -(-n // self.concurrency) * (self.timeout * self.attempts + waits)

    async def _all(self, calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        limit = asyncio.Semaphore(self.concurrency)
        tasks = [asyncio.ensure_future(self._one(call, limit, i)) for i, call in enumerate(calls)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, call: Callable[[], Awaitable[T]], limit: asyncio.Semaphore, number: int) -> T:
        async with limit:
            for attempt in range(1, self.attempts + 1):
                try:
                    return await self._in_time(call)
                except UserError:
                    raise
                except Exception as error:
                    if attempt == self.attempts:
                        tries = f"in {attempt} attempt{'s' * (attempt > 1)}"
                        raise UserError(f"{self.who} failed {tries}: {reason(error)} (response {number})") from error
                    log.info("%s: attempt %d failed: %s", self.who, attempt, reason(error))
                    await asyncio.sleep(min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT))
        raise AssertionError("there is at least one attempt")

    async def _in_time(self, call: Callable[[], Awaitable[T]]) -> T:
        task = asyncio.ensure_future(self._guarded(call))
        try:
            # `wait_for` waits for what ignores its cancelling
            done, _ = await asyncio.wait([task], timeout=self.timeout)
        finally:
            task.cancel()
        if not done:
            raise UserError(self.late)
        if task.cancelled():
            raise self._cancelled()
        return task.result()

    def _cancelled(self) -> UserError:
        return UserError(f"{self.who} failed: CancelledError")

    async def _guarded(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except (Exception, asyncio.CancelledError):
            raise
        except BaseException as error:  # some would end the loop, and nobody would wake who waits for it
            if isinstance(error, GeneratorExit) and not left_by_hand(error):
                raise
            raise UserError(f"{self.who} failed: {reason(error)}") from error


def _background_loop() -> asyncio.AbstractEventLoop:
    found = _loops.get(os.getpid())
    if found is None or found.is_closed():
        found = _loops[os.getpid()] = asyncio.new_event_loop()
        threading.Thread(target=_run, args=(found,), daemon=True, name="async rewards").start()
    return found


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop for ever, also after a call has stopped it or a task of its own has called `sys.exit`."""
    while not loop.is_closed():
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()
