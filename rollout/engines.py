"""Which engine a run uses: what its settings refuse before anything starts, and how it is started."""

from functools import partial
from pathlib import Path

from configs.load import ConfigError
from configs.schema import EngineSection, RunConfig
from rollout.engine import Engine, EngineError


def check_engine(config: RunConfig) -> None:
    """Raise ConfigError for an engine that this configuration, or this machine, cannot start."""
    section = config.engine
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
    if config.cluster.address:
        return  # the actors' machines may have what this one lacks
    from rollout.engine_vllm import check_installed

    try:
        check_installed()
    except EngineError as error:
        raise ConfigError(str(error)) from error


async def start_engine(
    config: RunConfig, weights: str, *, section: EngineSection, version: int, log: Path
) -> Engine:
    """The engine that `section` describes, serving the model in `weights` as `version`.

    `log`: where processes of its own write their errors. Raises EngineError.
    """
    # Each brings torch, and vLLM more: only a process that computes imports the one that it needs.
    if section.kind == "vllm":
        from rollout.engine_vllm import VllmEngine

        start = partial(VllmEngine.start, log=log)
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
