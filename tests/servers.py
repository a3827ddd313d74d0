"""Servers to ask over HTTP: a real vLLM in a process of its own, and a small one that can misbehave."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


STEERED = (
    "--enable-scale-out",
    "--worker-extension-cls=rollout.vllm_api.Worker",
    '--weight-transfer-config={"backend": "millrace_file"}',
)


@dataclass
class VllmServer:
    """A real server of `model`, on a CPU. `kill` and `start` again keep its address."""

    model: Path
    log: Path
    arguments: tuple[str, ...] = STEERED
    is_dev: bool = True
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it serves."""
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_SERVER_DEV_MODE": "1" if self.is_dev else "0",
        }
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self.model), "--host=127.0.0.1", f"--port={self.port}"]
        command += ["--dtype=float32", "--enforce-eager", "--max-model-len=512", "--block-size=32"]
        command += ["--kv-cache-memory-bytes=134217728", "--distributed-executor-backend=uni"]
        command += ["--logprobs-mode=processed_logprobs", "--generation-config=vllm"]
        command += ["--skip-tokenizer-init", "--scheduling-policy=priority"]
        command += ["--enable-prompt-tokens-details", *self.arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 180
        while not self._is_ready():
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.2)  # another process: nothing here to wait on

    def kill(self) -> None:
        """End it and all that it started, at once, if it runs."""
        if self.process is None or self.process.poll() is not None:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def counters(self) -> dict[str, float]:
        """All that it counts, by name; blocks."""
        counted: dict[str, float] = {}
        for line in self._get("/metrics").decode().splitlines():
            if not line.startswith("#"):
                key, _, number = line.rpartition(" ")
                name = key.partition("{")[0]
                counted[name] = counted.get(name, 0.0) + float(number)
        return counted

    def answer(self, path: str) -> Any:
        """What it answers there; blocks."""
        return json.loads(self._get(path))

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except OSError:
            return False


@contextmanager
def serving(server: VllmServer) -> Iterator[VllmServer]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


@dataclass
class TableServer:
    """Answers as vLLM does, from a table: logits of the next token by the last one.

    Each field is a way to be unlike what an engine needs. `failures`: what the next requests for
    tokens are answered with, a status each, 0 for a connection that is dropped.
    """

    vocab_size: int = 16
    has_generate: bool = True
    has_ids: bool = True
    has_priority: bool = True
    logprobs: str = "processed"
    is_stable: bool = True
    max_len: int | None = 512
    key: str = ""
    extra_stop: int | None = None
    failures: list[int] = field(default_factory=list)
    retry_after: str = ""
    control: dict[str, Any] | None = None
    """What control calls are answered with, by path; None where there are none."""
    is_paused: bool = False
    """At first; requests for tokens wait meanwhile."""
    is_mute: bool = False
    """Answers nobody, not even whether it is there."""
    calls: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    version: str = "default"
    port: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self.table = self._rng.normal(size=(self.vocab_size, self.vocab_size))
        self._runner: web.AppRunner | None = None
        self._news = asyncio.Event()
        self._goes_on = asyncio.Event()
        if not self.is_paused and not self.is_mute:
            self._goes_on.set()
        self._is_updating = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def go_on(self) -> None:
        """As somebody's POST /resume does."""
        self._goes_on.set()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for what requests bring about."""
        while not is_so():
            self._news.clear()
            await self._news.wait()

    async def __aenter__(self) -> "TableServer":
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        if self.has_generate:
            app.router.add_post("/inference/v1/generate", self._generate)
        if self.control is not None:
            app.router.add_get("/weight_info", self._weight_info)
            app.router.add_get("/is_paused", self._tell_paused)
            app.router.add_post("/{call}", self._control)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        self._goes_on.set()
        await self._runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        if self.is_mute:
            await self._goes_on.wait()
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response({"data": [{"id": "table", "max_model_len": self.max_len}]})

    async def _weight_info(self, _: web.Request) -> web.Response:
        return web.json_response({"weight_version": self.version})

    async def _tell_paused(self, _: web.Request) -> web.Response:
        return web.json_response({"is_paused": not self._goes_on.is_set()})

    async def _control(self, request: web.Request) -> web.Response:
        assert self.control is not None
        call = request.match_info["call"]
        self.calls.append(call)
        self._news.set()
        answer = self.control.get(call)
        if isinstance(answer, asyncio.Event):
            await answer.wait()
        elif answer is not None:
            return web.json_response({"error": {"message": answer}}, status=500)
        if call in ("pause", "resume"):
            (self._goes_on.clear if call == "pause" else self._goes_on.set)()
        if call == "start_weight_update":
            if self._is_updating:  # as vLLM's workers do, whose caller may have gone
                said = "start_weight_update called while a weight update is already active"
                return web.json_response({"error": {"message": said}}, status=500)
            self._is_updating = True
        if call == "finish_weight_update":
            self.version = (await request.json())["weight_version"]
            self._is_updating = False
        return web.json_response({})

    async def _failure(self, request: web.Request) -> web.Response | None:
        if not self.failures:
            return None
        status = self.failures.pop(0)
        self._news.set()
        if not status:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        headers = {"Retry-After": self.retry_after} if self.retry_after else None
        return web.json_response({"error": {"message": "no"}}, status=status, headers=headers)

    async def _generate(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if failure := await self._failure(request):
            return failure
        await self._goes_on.wait()
        self.asked.append(asked)
        if asked["priority"] and not self.has_priority:
            return web.json_response({"error": {"message": "fcfs"}}, status=400)
        ids, logprobs, tops, reason = self._sampled(asked["token_ids"], asked["sampling_params"])
        content = [
            {
                "token_id": token,
                "logprob": logprob,
                "top_logprobs": [{"token_id": i, "logprob": one} for i, one in top.items()],
            }
            for token, logprob, top in zip(ids, logprobs, tops, strict=True)
        ]
        choice = {
            "token_ids": ids if self.has_ids else None,
            "logprobs": {"content": content},
            "finish_reason": reason,
            "weight_versions": [{"version": self.version, "start": 0, "end": len(ids)}],
        }
        return web.json_response({"choices": [choice]})

    async def _completions(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if failure := await self._failure(request):
            return failure
        self.asked.append(asked)
        ids, logprobs, tops, reason = self._sampled(asked["prompt"], asked)
        choice: dict[str, Any] = {
            "text": "".join(map(str, ids)),
            "finish_reason": reason,
            "logprobs": {
                "token_logprobs": logprobs,
                "top_logprobs": [{f"token_id:{i}": one for i, one in top.items()} for top in tops],
            },
        }
        if self.has_ids:
            choice |= {"token_ids": ids, "prompt_token_ids": asked["prompt"]}
        return web.json_response({"choices": [choice]})

    def _sampled(
        self, prompt: list[int], sampling: dict[str, Any]
    ) -> tuple[list[int], list[float], list[dict[int, float]], str]:
        last, temperature = prompt[-1], sampling["temperature"]
        ids: list[int] = []
        logprobs: list[float] = []
        tops: list[dict[int, float]] = []
        if not self.is_stable:
            self.table = self._rng.normal(size=self.table.shape)
        while len(ids) < sampling["max_tokens"]:
            logits = self.table[last]
            drawn = self.said(last, temperature)
            told = {
                "processed": drawn,
                "raw": self.said(last, 1.0),
                "logits": (logits - 9.0) / (temperature or 1.0),
            }[self.logprobs]
            greedy = temperature == 0
            last = int(drawn.argmax() if greedy else self._rng.choice(len(drawn), p=np.exp(drawn)))
            ids.append(last)
            logprobs.append(float(told[last]))
            best = np.argsort(-told)[: sampling["logprobs"]]
            tops.append({int(one): float(told[one]) for one in best})
            if last == self.extra_stop or last in sampling["stop_token_ids"]:
                return ids, logprobs, tops, "stop"
        return ids, logprobs, tops, "length"

    def said(self, last: int, temperature: float) -> Any:
        """[vocab] log-probs of the token after `last`."""
        logits = self.table[last] / (temperature or 1.0)
        return logits - np.log(np.exp(logits).sum())
