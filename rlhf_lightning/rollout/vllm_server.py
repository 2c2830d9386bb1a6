"""Rollouts with a vLLM server: one address for all processes, tokens and seeds over HTTP, weights through files."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import has_adapter
from rlhf_lightning.rollout.agreement import by_first, together
from rlhf_lightning.rollout.engine import Engine, Generation, SamplingSettings
from rlhf_lightning.rollout.policy_weights import check_output_layer, write_weights
from rlhf_lightning.rollout.responses import Response, row_seeds, sampling_arguments, to_generation
from rlhf_lightning.rollout.vllm_client import RefusedError, VLLMClient
from rlhf_lightning.rollout.vllm_settings import VLLMRollout

MOST_AT_ONCE = 256  # open requests per process; vLLM batches them
NEEDS_ADAPTERS = "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
NEEDS_DEVELOPMENT = "start it with VLLM_SERVER_DEV_MODE=1"


class VLLMServer(Engine):
    """A running `vllm serve` of the policy's base, which gets the trained weights before every rollout.

    The first process writes them where the server reads them. An adapter is loaded under a new name each time
    (`/v1/load_lora_adapter`) and the previous one unloaded, since prompts are cached by the adapter's name and path.
    Without an adapter the server reloads all weights in place (`/collective_rpc`, method `reload_weights`) and discards
    its cached prompts.

    Args:
        pad_id: pads short responses.
        eos_ids: any of them ends a response.
        settings: see VLLMRollout; `server` is the address.
        client: the connection to it; None: as the settings say.
    """

    def __init__(
        self, pad_id: int, eos_ids: Sequence[int], settings: VLLMRollout, client: VLLMClient | None = None
    ) -> None:
        self.pad_id, self.eos_ids, self.settings = pad_id, sorted(set(eos_ids)), settings
        self.client = client or VLLMClient(str(settings.server), settings.timeout)
        self.device: torch.device | None = None
        self.name = ""  # of the model that samples
        self._run, self._syncs = uuid.uuid4().hex[:8], 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._has_adapter = self._checked = False

    def sync(self, model: nn.Module) -> None:
        """Give the server the policy's weights.

        Raises:
            UserError: in every process; the server does not answer, or was started without required options.
        """
        self.device, self._has_adapter = next(model.parameters()).device, has_adapter(model)
        self.name = by_first(partial(self._send, model))

    def generate(
        self, prompts: list[list[int]], settings: SamplingSettings, generator: torch.Generator | None = None
    ) -> Generation:
        """Return one response per prompt, in order; then the server sleeps, if asked to.

        Raises:
            UserError: in every process; the server does not answer, or returns something that cannot be a response.
        """
        assert self.device is not None, "call sync(model) first"
        seeds = row_seeds(len(prompts), generator)
        bodies = [
            {"model": self.name, "prompt": ids, "return_token_ids": True}
            | sampling_arguments(settings, seed, self.eos_ids)
            for ids, seed in zip(prompts, seeds, strict=True)
        ]
        generation = together(partial(self._sample, bodies, settings))
        if self.settings.sleep:
            level = 1 if self._has_adapter else 2  # all weights are sent again, but a base is not
            by_first(partial(self._develop, f"/sleep?level={level}"))
        return generation

    def close(self) -> None:
        """Unload the adapter and remove the files. The next `sync` loads it again."""
        if self._folder is None:
            return
        if self._has_adapter:
            with suppress(UserError):
                self._unload(self.name)
        self._folder.cleanup()
        self._folder = None

    @property
    def _source(self) -> str:
        return f"rollout.server: {self.client.address}"

    # ---- weights

    def _send(self, model: nn.Module) -> str:
        """Send the weights, in the first process; return the model name to sample from."""
        if self._folder is None:
            check_output_layer(model)
            self._folder = tempfile.TemporaryDirectory(prefix="rlhf-lightning-", dir=self.settings.sync_dir)
        former, self._syncs = self._syncs, self._syncs + 1
        folder = Path(self._folder.name) / str(self._syncs)
        write_weights(model, folder)
        self._wake("weights")
        name = self._load_adapter(folder, former) if self._has_adapter else self._load_all(folder)
        self._wake("kv_cache")
        shutil.rmtree(Path(self._folder.name) / str(former), ignore_errors=True)
        return name

    def _load_adapter(self, folder: Path, former: int) -> str:
        name = self._adapter_name(self._syncs)
        try:
            # In place, so that a request sent twice causes no conflict.
            body = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
            self.client.post("/v1/load_lora_adapter", body)
        except RefusedError as error:
            if error.unknown_path:
                raise UserError(f"{error}; to load adapters, {NEEDS_ADAPTERS}") from error
            raise UserError(f"{error}. {self._must_see(folder)}") from error
        if former:
            with suppress(RefusedError):  # a restarted server does not know it
                self._unload(self._adapter_name(former))
        return name

    def _adapter_name(self, sync: int) -> str:
        return f"policy-{self._run}-{sync}"

    def _unload(self, name: str) -> None:
        self.client.post("/v1/unload_lora_adapter", {"lora_name": name})

    def _load_all(self, folder: Path) -> str:
        name = self._served_model()
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self.client.post("/collective_rpc", body)
        except RefusedError as error:
            if error.unknown_path:
                raise UserError(
                    f"{error}; to replace all weights, {NEEDS_DEVELOPMENT}, or train an adapter: model/adapter=lora"
                ) from error
            raise UserError(f"{error}. {self._must_see(folder)}") from error
        forgotten = self.client.post("/reset_prefix_cache")
        if isinstance(forgotten, dict) and forgotten.get("success") is False:
            raise UserError(
                f"{self._source} keeps prompts of the previous weights in its cache: somebody else is using it"
            )
        return name

    def _must_see(self, folder: Path) -> str:
        return f"It must be able to read {folder}: on another machine, set rollout.sync_dir to a folder that both see"

    def _served_model(self) -> str:
        """Return the name of the model that the server was started with."""
        answer = self.client.get("/v1/models")
        try:
            return next(str(card["id"]) for card in answer["data"] if not card.get("parent"))
        except (TypeError, KeyError, StopIteration) as error:
            raise UserError(f"{self._source} lists no model under /v1/models") from error

    # ---- sampling

    def _sample(self, bodies: list[dict[str, Any]], settings: SamplingSettings) -> Generation:
        if not self._checked and settings.temperature not in (0.0, 1.0):
            self._check_tempered(bodies[0])
        self._checked = True
        at_once = self.settings.responses_at_once or MOST_AT_ONCE
        pool = ThreadPoolExecutor(min(at_once, len(bodies)))
        try:
            responses = list(pool.map(self._complete, bodies))
        finally:
            pool.shutdown(cancel_futures=True)
        assert self.device is not None
        return to_generation(responses, settings, self.pad_id, self.eos_ids, self.device, self._source)

    def _complete(self, body: dict[str, Any]) -> Response:
        choice = self._choice(body)
        try:
            return Response(list(choice["token_ids"]), list(choice["logprobs"]["token_logprobs"]))
        except (TypeError, KeyError) as error:
            raise self._not_a_completion(choice) from error

    def _choice(self, body: dict[str, Any]) -> Any:
        answer = self.client.post("/v1/completions", body)
        try:
            return answer["choices"][0]
        except (TypeError, KeyError, IndexError) as error:
            raise self._not_a_completion(answer) from error

    def _not_a_completion(self, answer: Any) -> UserError:
        found = " ".join(str(answer).split())[:200]
        return UserError(
            f"{self._source} does not answer as vLLM's /v1/completions with return_token_ids and logprobs does; found "
            f"{found}"
        )

    def _check_tempered(self, body: dict[str, Any]) -> None:
        """Raise UserError if the temperature does not change the log-probability of the likeliest token."""
        best = []
        for temperature in (1.0, body["temperature"]):
            choice = self._choice({**body, "temperature": temperature, "logprobs": 1, "max_tokens": 1})
            try:
                best.append(max(choice["logprobs"]["top_logprobs"][0].values()))
            except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
                raise self._not_a_completion(choice) from error
        if abs(best[0] - best[1]) < 1e-5 and best[0] < -1e-3:
            raise UserError(
                f"{self._source} reports log-probabilities before the temperature; start it with --logprobs-mode "
                "processed_logprobs"
            )

    # ---- sleep

    def _wake(self, part: str) -> None:
        """Wake the server, whoever put it to sleep: possibly a run that was killed."""
        if self.settings.sleep:
            self._develop(f"/wake_up?tags={part}")

    def _develop(self, path: str) -> None:
        try:
            self.client.post(path)
        except RefusedError as error:
            if error.unknown_path:
                raise UserError(f"{error}; for rollout.sleep, {NEEDS_DEVELOPMENT} and --enable-sleep-mode") from error
            raise
