"""Every setting of a run, typed and ranged. `RunConfig`, at the bottom, is the whole.

Values are validated once, by `configs.load`; afterwards a config is frozen. Field docs say what
happens when the value is raised.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from configs.lora import LoraSection
from configs.loss import LossSection
from configs.ranges import Count, Fraction, NonNegative, Positive, Whole


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the config file; unknown keys are refused."""


class RunSection(_Section, frozen=True, kw_only=True):
    dir: str = ""
    """Where everything of this run is written; empty: `runs/<name>-<time>`. Must be empty or new."""
    name: str = "local"
    """Shown in W&B and in the directory's name."""
    seed: Whole = 0
    """Seeds task drawing and sampling. Scheduling is asynchronous, so runs are not bit-equal."""
    imports: list[str] = []
    """Directories to import pools from, after the program's own; recipes named add theirs."""


class ModelSection(_Section, frozen=True, kw_only=True):
    path: str = "tiny_policy/policy"
    """A directory in Hugging Face format; relative paths are also looked up beside the recipes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of the weights in engines and learner."""


class PoolSection(_Section, frozen=True, kw_only=True):
    source: str
    """A `.py` file or a directory of them, `module:attribute`, or an entry point of `millrace.pools`."""
    weight: Positive = 1.0
    """Share of tasks drawn from this pool, relative to the other pools' weights."""
    train: list[str] = []
    """Environment ids to train on; empty: all of the pool's."""
    split: Literal["train", "eval"] = "train"
    """`eval`: never trained on, so evaluated on any configurations; a set of its name is made of it."""
    trusted: bool = False
    """Untrusted code runs in a sandbox, and not at all where there is none."""
    is_replayable: bool = True
    """Sessions whose process died go on in another, by playing their actions again."""
    step_timeout_s: NonNegative = 0.0
    """A step of it that takes longer is killed; 0: envpool.step_timeout_s."""
    memory_mb: Annotated[int, Meta(ge=0)] = 0
    """Address space of a session of it if it is untrusted; 0: envpool.memory_mb."""
    cpu_s: Whole = 0
    """CPU seconds of such a session; 0: envpool.cpu_s."""
    sessions_per_process: Count = 1
    """Sessions a process serves, one after another; more save forks, and only trusted code may."""

    sessions_per_worker: Count = 1
    """Sessions a process serves at the same time; more step faster, and a slow step delays them all."""

    def __post_init__(self) -> None:
        for name in ("sessions_per_process", "sessions_per_worker"):
            if getattr(self, name) > 1 and not self.trusted:
                raise ValueError(
                    f"{name}={getattr(self, name)} would let the code of one session meet another: "
                    f"set trusted=true if you trust it, or {name}=1"
                )


class RolloutSection(_Section, frozen=True, kw_only=True):
    group_size: Annotated[int, Meta(ge=2)] = 8
    """Rollouts per task; more give a better baseline and fewer tasks per step."""
    groups_per_step: Count = 8
    """Groups in a batch; more give a smoother gradient and fewer steps per minute."""
    min_members: Whole = 0
    """Fewest unfaulted rollouts a group trains with; 0: group_size - 1."""
    max_lag: Whole = 2
    """Hard bound on token lag, in versions. 0 is synchronous; more overlaps more."""
    max_attempts: Count = 3
    """Times a stale task is requeued before it fails by name."""
    draw: Literal["uniform", "band", "adaptive", "signal"] = "uniform"
    """Environments of a pool: all alike, by pass rate, by variance, by how often rewards differ."""
    band_low: Fraction = 0.1
    """With draw=band: pass rates above this are drawn, and unknown ones; higher skips what is too hard."""
    band_high: Fraction = 0.9
    """And up to this; lower skips what is too easy."""
    explore: Fraction = 0.1
    """With band and adaptive: share of draws that is uniform; more sees sooner what a policy has learned."""
    max_turns: Count = 12
    """Model replies per rollout."""
    max_reply_tokens: Count = 14
    """Tokens per reply."""
    max_context_tokens: Count = 256
    """Tokens per row, prompt included; a rollout that would pass it ends as context_full."""
    temperature: Positive = 1.0
    """Of training rollouts; the learner uses the same."""
    timeout_s: Positive = 120.0
    """A rollout that takes longer is a fault."""


class VllmSection(_Section, frozen=True, kw_only=True):
    kv_cache_mb: Whole = 0
    """Memory of its KV cache; 0: on a CPU what `max_running` full contexts need, on a GPU what it finds."""
    gpu_memory: Fraction = 0.9
    """Share of a GPU's memory that it takes, where `kv_cache_mb` is 0."""
    tensor_parallel: Count = 1
    """GPUs that one engine spans; set `actors.num_gpus` to the same."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model and capture CUDA graphs, which starts later and runs faster; `auto`: on GPUs."""
    update_timeout_s: Positive = 20.0
    """An engine that has not loaded new weights after this long is ended, and another started."""
    start_timeout_s: Positive = 150.0
    """An engine that takes longer to start is ended; one that replaces another is then tried again."""
    lora_rank: Annotated[int, Meta(ge=0, le=512)] = 0
    """Take adapters of up to this rank as new weights, and nothing else; 0: whole models."""
    arguments: dict[str, Any] = {}
    """More arguments of vLLM's AsyncEngineArgs, by name; what other settings decide is refused."""


class HttpSection(_Section, frozen=True, kw_only=True):
    urls: list[str] = []
    """Servers, one for each actor; with eval.every one more, the last, which plays these evaluations."""
    model: str = ""
    """Name by which the servers know the model; empty: the first that each lists."""
    api_key_env: str = ""
    """Environment variable that holds the servers' key, which is written nowhere; empty: there is none."""
    update_timeout_s: Positive = 20.0
    """A server that has not loaded new weights after this long failed the update."""
    retry_s: NonNegative = 30.0
    """A request that fails is asked again for this long; its rollout waits meanwhile."""

    def __post_init__(self) -> None:
        for url in self.urls:
            scheme, _, rest = url.partition("://")
            if scheme not in ("http", "https") or not rest.strip("/") or "@" in rest:
                raise ValueError(
                    f"urls has {url.rpartition('@')[2]!r}: write http://host:port, or https; a key belongs "
                    "into the environment variable that api_key_env names"
                )
        if len({url.rstrip("/") for url in self.urls}) < len(self.urls):
            raise ValueError(
                "urls names a server twice, and an update of one engine would change another's weights: "
                "give each a server of its own"
            )


class EngineSection(_Section, frozen=True, kw_only=True):
    kind: Literal["local", "vllm", "http"] = "local"
    """`local`: the embedded torch engine; `vllm`: vLLM on GPUs or a CPU; `http`: servers that run already."""
    update_mode: Literal["recompute", "keep", "drain"] = "recompute"
    """What running requests do when weights change; `recompute` is exact."""
    max_running: Count = 128
    """Requests computed together; also the members an actor has room for."""
    max_cached: Whole = 64
    """Finished rows kept for their prefix; more memory, less recomputation. Kind `local` alone."""
    threads: Count = 1
    """Torch threads of the engine; `vllm`: of each of its worker processes on a CPU."""
    vllm: VllmSection = VllmSection()
    """Of kind `vllm` alone."""
    http: HttpSection = HttpSection()
    """Of kind `http` alone."""


class ActorsSection(_Section, frozen=True, kw_only=True):
    count: Count = 1
    """Actors, each with an engine."""
    num_cpus: NonNegative = 1.0
    """CPUs that Ray sets aside for each."""
    num_gpus: NonNegative = 0.0
    """GPUs that Ray sets aside for each."""


class EnvPoolSection(_Section, frozen=True, kw_only=True):
    step_timeout_s: Positive = 10.0
    """A step that takes longer is killed."""
    start_timeout_s: Positive = 20.0
    """So is a session that takes longer to be ready."""
    max_sessions: Count = 2048
    """Live sessions per actor, or per host; openings beyond it wait."""
    served_by: Literal["actor", "host"] = "actor"
    """Sessions belong to each actor's process, or to one host for all actors of a node."""
    spares: Whole = 2
    """Processes of each pool forked ahead, so that a session need not wait for its own."""
    idle_timeout_s: Positive = 600.0
    """The process of a session that is not used for longer is ended; a step starts another."""
    memory_mb: Annotated[int, Meta(ge=64)] = 2048
    """Address space of a session of an untrusted pool; more than it uses, as libraries reserve some."""
    cpu_s: Count = 60
    """CPU seconds of such a session."""
    pool_memory_mb: Whole = 0
    """Memory of all such sessions of a pool, where cgroups can bound it; 0: half of what is here."""
    allow_unsandboxed: bool = False
    """Serve untrusted pools although nothing isolates them."""


class LearnerSection(_Section, frozen=True, kw_only=True):
    steps: Whole = 200
    """Optimizer steps of the run; 0 only evaluates."""
    lr: NonNegative = 2e-4
    """Peak learning rate; under lag, higher rates collapse first."""
    warmup_steps: Whole = 5
    """Steps over which the rate rises linearly from 0."""
    beta1: Fraction = 0.9
    """Adam's memory of the gradient."""
    beta2: Fraction = 0.95
    """Adam's memory of its square."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    grad_clip: Positive = 1.0
    """Bound on the gradient's norm."""
    updates_per_batch: Count = 1
    """Parts of a batch, each an optimizer update: more use data again under weights it did not see."""
    micro_batch_tokens: Count = 2048
    """Tokens computed at once, none of them padding; more memory, fewer passes."""
    share_prefix: bool = True
    """What the rows of a group have in common at their start is computed once, with the same gradient."""
    activation_checkpointing: bool = False
    """Keep only what enters each layer, and compute the rest again: less memory, a third slower."""
    compile: bool = False
    """Compile the layers with `torch.compile`: the first steps take minutes, later ones less time."""
    ranks: Count = 1
    """Processes that train together: each keeps a part of the weights and computes a part of a batch."""
    deadline_s: Positive = 600.0
    """With several ranks: one that keeps the others waiting for longer ends the run."""
    threads: Count = 1
    """Torch threads of each rank."""
    num_cpus: NonNegative = 1.0
    """CPUs that Ray sets aside for each rank."""
    num_gpus: NonNegative = 0.0
    """GPUs that Ray sets aside for each rank; several ranks on GPUs need a whole one each."""
    loss: LossSection = LossSection()
    """What is minimised."""
    lora: LoraSection = LoraSection()
    """What is trained: all weights, or adapters."""

    def __post_init__(self) -> None:
        loss = self.loss
        if self.ranks > 1 and self.num_gpus not in (0.0, 1.0):
            raise ValueError(
                f"num_gpus={self.num_gpus:g} with ranks={self.ranks}: ranks meet over NCCL, which wants "
                "a GPU for each: set num_gpus=1, or 0 for the CPU"
            )
        is_recomputed = loss.correction == "decoupled" and loss.proximal == "recomputed"
        if is_recomputed and self.updates_per_batch == 1:
            raise ValueError(
                'loss.proximal="recomputed" with updates_per_batch=1 would never clip, as the only '
                'update begins at the clip\'s centre: set loss.proximal="interpolated", or '
                "updates_per_batch=2 or more"
            )


class WeightsSection(_Section, frozen=True, kw_only=True):
    every: Count = 1
    """Steps between published versions."""
    dir: str = "/dev/shm"
    """Where versions are handed over; where it is missing or too small, the run directory is used."""
    deadline_s: Positive = 180.0
    """An engine that takes longer to load a version, or to be replaced by one that has it, stops the run."""
    transport: Literal["file", "relay", "nccl"] = "file"
    """`file`: read where it is written, and carried through Ray to engines on other nodes; `relay`: carried
    to those of the learner's node, too; `nccl`: from the learner's GPUs to those of vLLM, without a file; the next step waits for it."""
    buffer_mb: Count = 256
    """With nccl: tensors are sent in buffers of this size; larger ones are fewer and take more memory."""
    num_buffers: Count = 2
    """Buffers on each side: one is filled while another is sent."""
    delta: bool = False
    """Carry to other nodes only the numbers that changed, which in bf16 are few; takes one more copy of
    the weights on either side."""

    def __post_init__(self) -> None:
        if self.delta and self.transport == "nccl":
            raise ValueError(
                'delta=true is about weights that are carried through Ray, and transport="nccl" sends all '
                'of them: set delta=false, or transport="file" or "relay"'
            )

    @property
    def is_sent(self) -> bool:
        """Whether the learner sends tensors to the engines, which otherwise read files."""
        return self.transport == "nccl"


class EvalSet(_Section, frozen=True, kw_only=True):
    envs: list[str]
    """Environment ids, `pool/env`, or `env` where there is one pool."""
    level: Whole = 0
    """Difficulty handed to the environment's generator; 0 is that of training."""
    count: Count = 100
    """Configurations in all, spread evenly over the environments."""


class EvalSection(_Section, frozen=True, kw_only=True):
    sets: dict[str, EvalSet] = {}
    """Named sets of evaluation configurations, played before and after training."""
    samples: Count = 1
    """k of avg@k and pass@k: episodes of each configuration when sampled; greedy always has one."""
    before: bool = True
    """Play them with the initial weights."""
    after: bool = True
    """Play them with the final weights."""
    every: Whole = 0
    """Steps between evaluations while training goes on, by a process of its own; 0: none."""
    during: Count = 8
    """Configurations of each set that these play, once sampled and once greedy: its first ones."""


class CheckpointSection(_Section, frozen=True, kw_only=True):
    every: Whole = 50
    """Steps between checkpoints; 0: only the last step."""
    keep: Count = 2
    """Checkpoints kept; older ones are removed."""


class AlarmSection(_Section, frozen=True, kw_only=True):
    steps: Count = 10
    """Steps over which rewards are averaged, and others must be beyond their bound, before it warns."""
    reward_frac: Fraction = 0.5
    """Collapse: the mean reward is below this share of the best there was; 0: never."""
    ess_min: Fraction = 0.2
    """Collapse: `loss/ess` stays below this, so that few tokens decide the gradient; 0: never."""
    entropy_min: NonNegative = 0.0
    """Collapse: `loss/entropy` stays below this, in nats; 0: never."""
    rollback: bool = False
    """On a collapse go back to the newest checkpoint from before it, at half the learning rate."""


class LoggingSection(_Section, frozen=True, kw_only=True):
    wandb: Literal["offline", "online", "off"] = "off"
    """`offline` writes a directory that `wandb sync` uploads."""
    project: str = "millrace"
    """W&B project."""
    level: Literal["DEBUG", "INFO", "WARNING"] = "INFO"
    """Of the logs."""
    tokens: bool = False
    """Keep the tokens of rollouts in their log, for `sft` to imitate them as they were sampled."""


class ControlSection(_Section, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    """Address of the control server; on any but a loopback one requests must carry the token."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Its port; 0 lets the system choose."""
    token: str = ""
    """What requests must carry; empty: none on loopback, else a random one, in `control.json`."""
    stall_s: Positive = 180.0
    """With no rollout finished and no step trained for this long, the run explains itself and stops."""


class ClusterSection(_Section, frozen=True, kw_only=True):
    address: str = ""
    """Ray cluster to join (`auto`, `host:port`); empty starts a one-node cluster here."""
    object_store_mb: Annotated[int, Meta(ge=80)] = 128
    """Shared memory of a cluster started here."""
    start_timeout_s: Positive = 300.0
    """Actors and learner that take longer to be placed and ready stop the run."""


class RunConfig(_Section, frozen=True, kw_only=True):
    """The whole of a run."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    pools: dict[str, PoolSection] = {}
    rollout: RolloutSection = RolloutSection()
    engine: EngineSection = EngineSection()
    actors: ActorsSection = ActorsSection()
    envpool: EnvPoolSection = EnvPoolSection()
    learner: LearnerSection = LearnerSection()
    weights: WeightsSection = WeightsSection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    alarm: AlarmSection = AlarmSection()
    logging: LoggingSection = LoggingSection()
    control: ControlSection = ControlSection()
    cluster: ClusterSection = ClusterSection()

    def without_secrets(self) -> "RunConfig":
        """As it may be written down and sent around."""
        control = msgspec.structs.replace(self.control, token="")
        return msgspec.structs.replace(self, control=control)

    def __post_init__(self) -> None:
        rollout = self.rollout
        if self.weights.every > rollout.max_lag + 1:
            raise ValueError(
                f"weights.every={self.weights.every} with rollout.max_lag={rollout.max_lag} would "
                f"deadlock: lower weights.every to at most {rollout.max_lag + 1}, or raise "
                "rollout.max_lag"
            )
        if rollout.min_members > rollout.group_size:
            raise ValueError(
                f"rollout.min_members={rollout.min_members} is more than "
                f"rollout.group_size={rollout.group_size}: lower it"
            )
        if rollout.band_low >= rollout.band_high:
            raise ValueError(
                f"rollout.band_low={rollout.band_low:g} is not below "
                f"rollout.band_high={rollout.band_high:g}, so that no pass rate is in the band: lower "
                "rollout.band_low, or raise rollout.band_high"
            )
        if self.learner.updates_per_batch > rollout.groups_per_step:
            raise ValueError(
                f"learner.updates_per_batch={self.learner.updates_per_batch} is more than the groups "
                f"of a batch, rollout.groups_per_step={rollout.groups_per_step}: lower it"
            )
        if self.learner.loss.overlong_start >= rollout.max_context_tokens:
            raise ValueError(
                f"learner.loss.overlong_start={self.learner.loss.overlong_start} is never reached with "
                f"rollout.max_context_tokens={rollout.max_context_tokens}: lower it"
            )
        if rollout.max_reply_tokens >= rollout.max_context_tokens:
            raise ValueError(
                f"rollout.max_reply_tokens={rollout.max_reply_tokens} leaves no room in "
                f"rollout.max_context_tokens={rollout.max_context_tokens}: raise the latter"
            )
        if self.eval.every and not self.eval.sets:
            raise ValueError(
                f"eval.every={self.eval.every} has nothing to play: add a table [eval.sets.<name>] "
                "with envs, or set eval.every=0"
            )


Tree = dict[str, Any]
