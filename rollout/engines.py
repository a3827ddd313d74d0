"""Which engine a run uses: what its settings refuse before anything starts, and how it is started."""

from functools import partial
from pathlib import Path

from configs.load import ConfigError
from configs.schema import EngineSection, RunConfig
from rollout.engine import Engine, EngineError

# Arguments of vLLM that change the number of an engine's workers.
_GROUP_SIZES = {"tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"}


def check_engine(config: RunConfig) -> None:
    """Raise ConfigError for an engine that this configuration, or this machine, cannot start."""
    section = config.engine
    if config.weights.transport == "nccl":
        _check_nccl(config)
    if section.kind == "local":
        return
    options, deadline_s = section.vllm, config.weights.deadline_s
    if options.update_timeout_s >= deadline_s:
        raise ConfigError(
            f"engine.vllm.update_timeout_s={options.update_timeout_s:g} must be less than "
            f"weights.deadline_s={deadline_s:g}, within which the engine that replaces a stuck one must "
            "have loaded the weights: raise the latter"
        )
    gpus = config.actors.num_gpus
    if gpus and options.tensor_parallel > gpus:
        raise ConfigError(
            f"engine.vllm.tensor_parallel={options.tensor_parallel} needs as many GPUs for each actor: set "
            f"actors.num_gpus={options.tensor_parallel} (it is {gpus:g})"
        )
    if options.lora_rank and config.learner.steps:
        raise ConfigError(
            f"engine.vllm.lora_rank={options.lora_rank} takes adapters alone, and the learner trains and "
            "publishes all weights: set engine.vllm.lora_rank=0"
        )
    if config.cluster.address:
        return  # the actors' machines may have what this one lacks
    from rollout.vllm_setup import check_installed

    try:
        check_installed()
    except EngineError as error:
        raise ConfigError(str(error)) from error


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
    if taken := sorted(_GROUP_SIZES & options.arguments.keys()):
        raise ConfigError(
            f"engine.vllm.arguments.{taken[0]} changes how many workers an engine has, and {what} counts "
            f"engine.vllm.tensor_parallel of them: leave it out, {otherwise}"
        )


async def start_engine(
    config: RunConfig, weights: str, *, section: EngineSection, version: int, log: Path
) -> Engine:
    """The engine that `section` describes, serving the model in `weights` as `version`.

    `log`: where processes of its own write their errors. Raises EngineError.
    """
    # Each brings torch, and vLLM more: only a process that computes imports the one that it needs.
    if section.kind == "vllm":
        from rollout.engine_vllm import VllmEngine

        start = partial(VllmEngine.start, log=log, transport=config.weights.transport)
    else:
        from rollout.engine_local import LocalEngine

        start = LocalEngine.start
    return await start(
        weights,
        dtype=config.model.dtype,
        section=section,
        max_context_tokens=config.rollout.max_context_tokens,
        version=version,
    )
