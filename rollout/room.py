"""What a run asks of a cluster, and what the cluster has, in words."""

from collections.abc import Mapping

from configs.load import ConfigError
from configs.schema import RunConfig
from rollout.evaluator import is_wanted


def check_gpus(config: RunConfig, resources: Mapping[str, float]) -> None:
    """Raise ConfigError where a machine of these resources lacks GPUs that the run asks for."""
    actors, learner = config.actors, config.learner
    wanted = (actors.count + is_wanted(config)) * actors.num_gpus + learner.num_gpus
    if wanted > (found := resources.get("GPU", 0)):
        raise ConfigError(
            f"actors.num_gpus={actors.num_gpus:g} and learner.num_gpus={learner.num_gpus:g} ask for "
            f"{wanted:g} GPUs in all, and this machine has {found:g}: lower them, or name a Ray cluster "
            "in cluster.address"
        )


def asked_for(config: RunConfig) -> str:
    """What each process of a run asks for."""
    actors, learner = config.actors, config.learner
    return (
        f"They ask for {actors.num_cpus:g} CPUs and {actors.num_gpus:g} GPUs for each actor, "
        f"{learner.num_cpus:g} and {learner.num_gpus:g} for the learner"
    )


def room(resources: Mapping[str, float]) -> str:
    """`2 CPUs and 0 GPUs`."""
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
