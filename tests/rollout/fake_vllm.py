"""The part of vLLM that our engines use, on a small Hugging Face model: a local engine, and an HTTP server.

It samples by plain forward passes, so its answers are independent of our engines; it holds copies of the weights, which
are as old as its last sync.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

SAMPLING = {
    *("max_tokens", "temperature", "seed", "logprobs", "stop_token_ids", "ignore_eos", "top_k", "top_p", "min_p"),
    *("min_tokens", "repetition_penalty", "presence_penalty", "frequency_penalty"),
}


class Backend:
    """A base, the adapters on it, and what it was asked to do, in order."""

    def __init__(self, folder: str | Path, raw_logprobs: bool = False) -> None:
        self.folder, self.raw_logprobs = str(folder), raw_logprobs
        self.base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.adapters: dict[str, Any] = {}
        self.log: list[str] = []

    def reload(self, weights: Iterable[tuple[str, Tensor]] | str) -> None:
        if isinstance(weights, str):
            self.base = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
        else:
            found = {name: weight.clone() for name, weight in weights}
            missing = self.base.load_state_dict(found, strict=False).missing_keys
            assert missing in ([], ["lm_head.weight"]), missing
        self.log.append("reload")

    def load_adapter(self, name: str, folder: str) -> None:
        base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        self.adapters[name] = PeftModel.from_pretrained(base, folder).eval()
        self.log.append(f"load {name}")

    def unload_adapter(self, name: str) -> None:
        del self.adapters[name]
        self.log.append(f"unload {name}")

    @torch.no_grad()
    def respond(
        self, name: str | None, prompt: list[int], wanted: dict[str, Any]
    ) -> tuple[list[int], list[float], Any]:
        """Return token ids, their log-probabilities, and that of the likeliest token at the first step."""
        assert wanted["ignore_eos"] and wanted["top_k"] == 0 and wanted["top_p"] == 1.0 and wanted["min_p"] == 0.0
        model = self.adapters.get(name or "", self.base)
        generator = torch.Generator().manual_seed(wanted["seed"])
        ids, tokens, logprobs, best = list(prompt), [], [], None
        while len(tokens) < wanted["max_tokens"]:
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            tempered = logits / (wanted["temperature"] or 1.0)
            drawn = torch.multinomial(tempered.softmax(-1), 1, generator=generator).item()
            token = int(drawn) if wanted["temperature"] else int(logits.argmax())
            reported = (logits if self.raw_logprobs else tempered).log_softmax(-1)
            tokens.append(token)
            logprobs.append(float(reported[token]))
            best = float(reported.max()) if best is None else best
            ids.append(token)
            if token in wanted["stop_token_ids"]:
                break
        return tokens, logprobs, best


# ---- an engine in the process


class FakeLLM(Backend):
    """`vllm.LLM`. It seeds everything, like vLLM, and records the state of torch in which it was called."""

    made: list[FakeLLM] = []  # noqa: RUF012

    def __init__(self, **arguments: Any) -> None:
        if arguments.get("enable_sleep_mode") and arguments.get("device") == "cpu":
            raise ValueError("Sleep mode is not supported on current platform.")
        super().__init__(arguments["model"], raw_logprobs=arguments["logprobs_mode"] == "raw_logprobs")
        self.arguments, self.requests, self.states = arguments, [], []
        self.llm_engine = SimpleNamespace(
            add_lora=lambda request: self.load_adapter(str(request.lora_int_id), request.lora_path),
            remove_lora=lambda number: self.unload_adapter(str(number)),
            engine_core=SimpleNamespace(shutdown=lambda: self.log.append("shutdown")),
        )
        FakeLLM.made.append(self)
        self._spoil()

    def _spoil(self) -> None:
        self.states.append((torch.is_autocast_enabled("cpu"), torch.get_default_dtype()))
        torch.manual_seed(0)
        torch.set_num_threads = lambda count: None  # as vLLM's CPU worker does

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        self.reload(kwargs["weights_iterator"])

    def reset_prefix_cache(self) -> bool:
        self.log.append("reset_prefix_cache")
        return True

    def sleep(self, level: int) -> None:
        self.log.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.log.append(f"wake {tags}")

    def generate(self, prompts: list[Any], parameters: list[Any], lora_request: Any, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm, "vLLM's progress bars would run through ours"
        self._spoil()
        self.log.append("generate")
        name = None if lora_request is None else str(lora_request.lora_int_id)
        assert name is None or name in self.adapters
        answers = []
        for prompt, wanted in zip(prompts, parameters, strict=True):
            self.requests.append(vars(wanted))
            tokens, logprobs, _ = self.respond(name, prompt["prompt_token_ids"], vars(wanted))
            steps = [{token: SimpleNamespace(logprob=x)} for token, x in zip(tokens, logprobs, strict=True)]
            answers.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, logprobs=steps)]))
        return answers


def sampling_params(detokenize: bool, **arguments: Any) -> SimpleNamespace:
    assert set(arguments) == SAMPLING and detokenize is False
    return SimpleNamespace(**arguments)


def lora_request(name: str, number: int, folder: str) -> SimpleNamespace:
    assert number >= 1
    return SimpleNamespace(lora_name=name, lora_int_id=number, lora_path=folder)


def install(monkeypatch: pytest.MonkeyPatch, llm: Callable[..., Any] = FakeLLM) -> None:
    """Make `import vllm` find the fake."""
    FakeLLM.made = []
    modules = {
        "vllm": {"LLM": llm, "SamplingParams": sampling_params},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": lora_request},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


# ---- a server


class FakeServer(Backend):
    """`vllm serve`: the endpoints that the engine uses, over HTTP on a free port.

    Attributes:
        missing: paths that do not exist (on a server started without a flag).
        trouble: called before each request with its path; may sleep, or return (status, text) as the answer.
        dies_at: number of the completion at which it silently closes its port and every connection.
    """

    def __init__(self, folder: str | Path, raw_logprobs: bool = False) -> None:
        super().__init__(folder, raw_logprobs)
        self.missing: set[str] = set()
        self.trouble: Callable[[str], tuple[int, str] | None] = lambda path: None
        self.dies_at: int | None = None
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.open = self.most_open = 0
        self.dead = False
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()

    def stop(self) -> None:
        """Close the port."""
        self.dead = True
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and answer; text literally, anything else as JSON."""
        path, _, query = path.partition("?")
        if told := self.trouble(path):
            return told
        if path in self.missing:
            return 404, {"detail": "Not Found"}
        if path == "/v1/completions":
            return self._complete(body)
        with self._lock:
            return self._control(path, query, body)

    def _control(self, path: str, query: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            cards = [{"id": name, "parent": "base"} for name in self.adapters]
            return 200, {"data": [*cards, {"id": "base", "parent": None}]}
        if path == "/v1/load_lora_adapter":
            if not (Path(body["lora_path"]) / "adapter_config.json").is_file():
                return 404, {"error": {"message": f"No adapter found for {body['lora_path']}"}}
            self.load_adapter(body["lora_name"], body["lora_path"])
            return 200, "Success"
        if path == "/v1/unload_lora_adapter":
            if body["lora_name"] not in self.adapters:
                return 404, {"error": {"message": f"no adapter {body['lora_name']}"}}
            self.unload_adapter(body["lora_name"])
            return 200, "Success"
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.reload(body["kwargs"]["weights_path"])
            return 200, {"results": [None]}
        if path == "/reset_prefix_cache":
            self.log.append("reset_prefix_cache")
            return 200, {"success": True}
        if path in ("/sleep", "/wake_up"):
            self.log.append(f"{path[1:]} {query}")
            return 200, {}
        raise AssertionError(path)

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        assert set(body) == SAMPLING | {"model", "prompt", "return_token_ids"}
        with self._lock:
            self.requests.append(body)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            if self.dies_at is not None and len(self.requests) >= self.dies_at:
                self.dead = True
                threading.Thread(target=self.stop, daemon=True).start()
        try:
            if body["model"] not in self.adapters and body["model"] != "base":
                return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
            tokens, logprobs, best = self.respond(body["model"], body["prompt"], body)
        finally:
            with self._lock:
                self.open -= 1
        top = [{"likeliest": best}] * len(tokens) if body["logprobs"] else None
        return 200, {"choices": [{"token_ids": tokens, "logprobs": {"token_logprobs": logprobs, "top_logprobs": top}}]}


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(json.loads(text) if text else None)

        def _answer(self, body: Any) -> None:
            server.headers.append(dict(self.headers))
            status, answer = (0, "") if server.dead else server.answer(self.path, body)
            if server.dead:
                return  # the connection breaks
            text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def serving(folder: str | Path, **arguments: Any) -> Iterator[FakeServer]:
    """Run a server that is stopped at the end."""
    server = FakeServer(folder, **arguments)
    try:
        yield server
    finally:
        if not server.dead:
            server.stop()


def wait(seconds: float) -> Callable[[str], None]:
    """Return a trouble: every completion takes this long."""
    return lambda path: time.sleep(seconds) if path == "/v1/completions" else None
