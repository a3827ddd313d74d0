"""Adapters as new weights: what is refused, and that real vLLM computes with them, also in mid-reply."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from configs.schema import VllmSection
from learner.publish import Publisher
from rollout.adapters import AdapterFolder
from rollout.engine import UpdateMode
from rollout.model import load_model
from rollout.types import Sampling
from rollout.weights import Adapter, Manifest, WeightsError
from tests.engines import assert_close, needs_vllm, sampling, started
from tests.models import plain_logprobs, tiny_qwen3

ADAPTER = Adapter(rank=3, alpha=5, target_modules=["q_proj", "o_proj", "gate_proj", "down_proj"])
PROMPT = [3, 1, 4, 1, 5]

torch.set_num_threads(1)


def matrices(model: PreTrainedModel, adapter: Adapter, seed: int) -> dict[str, Tensor]:
    """An adapter of every matrix that it targets, named as peft does, large enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in adapter.target_modules:
            shapes = {"A": (adapter.rank, weight.shape[1]), "B": (weight.shape[0], adapter.rank)}
            for part, shape in shapes.items():
                tensors[f"base_model.model.{module}.lora_{part}.weight"] = 0.3 * torch.randn(
                    shape, generator=generator
                )
    return tensors


def merged(path: Path, adapter: Adapter, tensors: dict[str, Tensor]) -> PreTrainedModel:
    """The model in `path` with W + alpha / rank * B @ A in place of each W."""
    model = load_model(path, "float32")
    weights = model.state_dict()
    for name, b in tensors.items():
        if name.endswith(".lora_B.weight"):
            a = tensors[name.replace(".lora_B.", ".lora_A.")]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            weights[f"{module}.weight"] += adapter.alpha / adapter.rank * b @ a
    return model


class Learner:
    """Adapters of one model, published one after another."""

    def __init__(self, folder: Path) -> None:
        self.path = tiny_qwen3(folder / "model")
        self.models = [load_model(self.path, "float32")]
        self.publisher = Publisher(
            directory=str(folder), fallback=folder, run_id="run", log=folder / "version.json"
        )

    def publish(self, adapter: Adapter = ADAPTER) -> Manifest:
        """A next version, whose model is the last of `models`."""
        version = len(self.models)
        tensors = matrices(self.models[0], adapter, seed=version)
        self.models.append(merged(self.path, adapter, tensors))
        return self.publisher.publish(tensors, version=version, step=version, adapter=adapter)


SHAPES = {"model.layers.0.self_attn.q_proj.weight": (8, 4), "model.norm.weight": (4,)}
GOOD = {
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 4),
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.ones(8, 2),
}
SMALL = Adapter(rank=2, alpha=4, target_modules=["q_proj"])


def publish(folder: Path, tensors: dict[str, Tensor], adapter: Adapter | None) -> Manifest:
    log = folder / "version.json"
    publisher = Publisher(directory=str(folder), fallback=folder, run_id="run", log=log)
    return publisher.publish(tensors, version=1, step=1, adapter=adapter)


def test_an_adapter_is_written_as_peft_does(tmp_path: Path) -> None:
    folder = AdapterFolder(SHAPES, max_rank=2)
    path = folder.put(publish(tmp_path, GOOD, SMALL))
    torch.testing.assert_close(load_file(path / "adapter_model.safetensors"), GOOD)
    settings = json.loads((path / "adapter_config.json").read_bytes())
    assert settings["r"] == 2 and settings["lora_alpha"] == 4
    assert settings["target_modules"] == ["q_proj"]
    assert folder.put_nothing() != path
    folder.close()
    assert not path.exists()


def test_the_first_adapter_changes_nothing() -> None:
    folder = AdapterFolder(SHAPES, max_rank=2)
    tensors = load_file(folder.put_nothing() / "adapter_model.safetensors")
    assert {tuple(one.shape) for one in tensors.values()} == {(1, 4), (8, 1)}
    assert not any(one.any() for one in tensors.values())
    folder.close()


A, B = GOOD
NORM = "base_model.model.model.norm.lora_A.weight"


@pytest.mark.parametrize(
    ("tensors", "adapter", "said"),
    [
        (GOOD, None, "has all weights, and engine.vllm.lora_rank=2"),
        (GOOD, Adapter(rank=3, alpha=1, target_modules=["q_proj"]), "raise engine.vllm.lora_rank"),
        (GOOD, Adapter(rank=1, alpha=1, target_modules=["q_proj"]), "rank 1 of a matrix"),
        (GOOD, Adapter(rank=2, alpha=1, target_modules=["k_proj"]), "target_modules are"),
        ({A: GOOD[A]}, SMALL, "rank 2 of a matrix"),
        ({A: GOOD[A].T.contiguous(), B: GOOD[B]}, SMALL, "rank 2 of a matrix"),
        ({"model.layers.0.q_proj.weight": GOOD[A]}, SMALL, "as peft does"),
        ({NORM: GOOD[A]}, SMALL, "no matrix of this model"),
        ({A.replace("layers.0", "layers.9"): GOOD[A]}, SMALL, "no matrix of this model"),
    ],
)
def test_what_is_no_adapter_of_the_model_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], adapter: Adapter | None, said: str
) -> None:
    folder = AdapterFolder(SHAPES, max_rank=2)
    with pytest.raises(WeightsError, match=said):
        folder.put(publish(tmp_path, tensors, adapter))
    folder.close()


KILLED = """
import os, signal
from rollout.adapters import AdapterFolder
folder = AdapterFolder({}, max_rank=2)
print(folder._folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_folders_of_the_killed_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = AdapterFolder(SHAPES, max_rank=2)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    left = Path(killed.stdout.strip())
    assert left.is_relative_to(tmp_path) and left.exists()
    AdapterFolder(SHAPES, max_rank=2).close()
    assert not left.exists()
    assert mine.put_nothing().exists()
    mine.close()
    mine.close()
    assert not list(tmp_path.iterdir())


def on_vllm(test: object) -> object:
    for mark in needs_vllm:
        test = mark(test)
    return test


@on_vllm
async def test_adapters_replace_one_another_under_running_requests(tmp_path: Path) -> None:
    learner = await asyncio.to_thread(Learner, tmp_path)
    options = VllmSection(lora_rank=3)
    async with started("vllm", learner.path, max_running=8, vllm=options) as engine:
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(engine.generate(PROMPT, Sampling(max_tokens=200)))
                for _ in range(4)
            ]
            for sampled in (40, 200):
                await sampling(engine, sampled, since=0)
                manifest = await asyncio.to_thread(learner.publish)
                await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
        replies = [task.result() for task in asked]
        # With a prompt that was cached under every version before.
        replies.append(await engine.generate(PROMPT, Sampling(max_tokens=20)))
        # All or nothing: refused, and what was served goes on.
        wrong = await asyncio.to_thread(
            learner.publish, Adapter(rank=9, alpha=1, target_modules=["q_proj"])
        )
        with pytest.raises(WeightsError, match=r"raise engine\.vllm\.lora_rank"):
            await engine.update_weights(wrong, UpdateMode.RECOMPUTE)
        replies.append(await engine.generate(PROMPT, Sampling(max_tokens=20)))
        assert engine.version == 2
        await asyncio.to_thread(_kill, engine.pids)
        replies.append(await engine.generate(PROMPT, Sampling(max_tokens=20)))
    assert [[span.version for span in reply.spans] for reply in replies] == [
        *[[0, 1, 2]] * 4,
        [2],
        [2],
        [2],
    ]
    for reply in replies:
        tokens = reply.token_ids.tolist()
        for span in reply.spans:
            part = slice(span.start, span.end)
            expected = plain_logprobs(learner.models[span.version], PROMPT, tokens)[part]
            assert_close(reply.logprobs[part], expected)


def _kill(pids: list[int]) -> None:
    import os
    import signal

    for pid in pids:
        os.kill(pid, signal.SIGKILL)
