"""The arguments of vLLM's engine: what a run's settings mean to it, and what a CPU needs besides."""
# pyright: reportMissingImports=false

import json
import os
import warnings
from pathlib import Path
from typing import Any, get_args

from configs.schema import EngineSection
from rollout.engine import EngineError, check_context
from rollout.leash import Leash

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # those of vLLM's own imports
    from vllm.config.lora import MaxLoRARanks
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

_CPU_BLOCK_TOKENS = 32
_BYTES = {"float32": 4, "bfloat16": 2}


def engine_arguments(
    model_path: Path,
    *,
    dtype: str,
    section: EngineSection,
    max_context_tokens: int,
    worker: str,
    backend: str,
    leash: Leash,
) -> dict[str, Any]:
    """What to make AsyncEngineArgs with; raises EngineError for what vLLM cannot serve.

    `worker` names the class added to its workers', `backend` the way that new weights come.
    `leash` goes to each of its processes.
    """
    context = max_context_tokens
    options, is_cpu = section.vllm, current_platform.is_cpu()
    model = json.loads((model_path / "config.json").read_bytes())
    check_context(context, model.get("max_position_embeddings", context))
    chosen: dict[str, Any] = {
        "model": str(model_path),
        "dtype": dtype,
        "max_model_len": context,
        "max_num_seqs": section.max_running,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # nothing that the model's directory recommends
        # Of all that is drawn without a seed of its own: two engines must not draw the same.
        "seed": int.from_bytes(os.urandom(4)),
        "skip_tokenizer_init": True,
        "scheduling_policy": "priority",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "enforce_eager": is_cpu if options.compile == "auto" else options.compile == "off",
        "tensor_parallel_size": options.tensor_parallel,
        "distributed_executor_backend": "uni" if options.tensor_parallel == 1 else "mp",
        "worker_extension_cls": worker,
        "weight_transfer_config": {"backend": backend},
    }
    if options.lora_rank:
        rank = min(rank for rank in get_args(MaxLoRARanks) if rank >= options.lora_rank)
        chosen |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
    if is_cpu:
        head_dim = _head_dim(model)
        _check_head_dim(head_dim)
        kv_bytes = _context_bytes(model, head_dim, dtype, context) * section.max_running
        chosen["block_size"] = _CPU_BLOCK_TOKENS
        chosen["kv_cache_memory_bytes"] = options.kv_cache_mb << 20 or kv_bytes
    elif options.kv_cache_mb:
        chosen["kv_cache_memory_bytes"] = options.kv_cache_mb << 20
    else:
        chosen["gpu_memory_utilization"] = options.gpu_memory
    known = AsyncEngineArgs.__dataclass_fields__
    if unknown := sorted(options.arguments.keys() - known.keys()):
        raise EngineError(
            f"engine.vllm.arguments: vLLM's AsyncEngineArgs has no {', '.join(unknown)}"
        )
    settings = {**options.arguments.get("additional_config", {}), "millrace_leash": leash}
    return chosen | options.arguments | {"additional_config": settings}


def _head_dim(model: dict[str, Any]) -> int:
    return model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"]


def _check_head_dim(head_dim: int) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if head_dim not in sizes:
        raise EngineError(
            f"the model's head_dim is {head_dim}, and vLLM's attention on a CPU knows "
            f"{', '.join(map(str, sizes))}: use engine.kind='local', or another model"
        )


def _context_bytes(model: dict[str, Any], head_dim: int, dtype: str, context: int) -> int:
    """Memory of the keys and values of one full context, in whole blocks and one to spare."""
    blocks = -(-context // _CPU_BLOCK_TOKENS) + 1
    kv_heads = model.get("num_key_value_heads") or model["num_attention_heads"]
    a_token = 2 * model["num_hidden_layers"] * kv_heads * head_dim * _BYTES[dtype]
    return blocks * _CPU_BLOCK_TOKENS * a_token
