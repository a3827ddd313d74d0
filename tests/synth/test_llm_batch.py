"""Batch files: written, answered elsewhere, read back."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from configs.load import ConfigError
from synth.llm.batch import BatchReport
from synth.llm.synthesizer import Synthesizer
from synth.records import Draft
from tests.synth.llm_server import ENVIRON, PROBLEM, Answer, completion, good, make_recipe, serve

SETTINGS: dict[str, Any] = {"samples": 2, "solvers": 1}
OTHER = msgspec.structs.replace(PROBLEM, id="other", statement=f"Again: {PROBLEM.statement}")


async def write(path: Path) -> list[dict[str, Any]]:
    """The lines of a batch request file; no endpoint and no key is there."""
    recipe = make_recipe(batch="write", **SETTINGS)
    async with Synthesizer(recipe, path.parent, environ={}) as synthesizer:
        assert await synthesizer.write_batch([PROBLEM, OTHER], path) == 6
    text = await asyncio.to_thread(path.read_text)
    return [json.loads(line) for line in text.splitlines()]


def replied(line: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """The line of a reply file."""
    body = json.loads(completion(answer))
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": line["custom_id"], "response": response, "error": None}


async def test_a_batch_file_has_every_first_request(tmp_path: Path) -> None:
    lines = await write(tmp_path / "requests.jsonl")
    assert [sorted(line) for line in lines] == [["body", "custom_id", "method", "url"]] * 6
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    names = [line["custom_id"].rpartition(".")[0] for line in lines]
    assert names == [
        f"{problem}.{what}"
        for problem in (PROBLEM.id, "other")
        for what in ("environment.0", "environment.1", "solver.0")
    ]
    assert {line["body"]["model"] for line in lines} == {"tiny"}


async def test_a_run_on_a_reply_file_asks_nothing(tmp_path: Path) -> None:
    lines = await write(tmp_path / "requests.jsonl")
    # In another order than they were asked.
    text = "\n".join(json.dumps(replied(line, good(line["body"]))) for line in reversed(lines))
    replies = tmp_path / "replies.jsonl"
    await asyncio.to_thread(replies.write_text, text)
    async with serve([]) as served:
        recipe = make_recipe(served.url, batch="read", replies=str(replies), **SETTINGS)
        async with Synthesizer(recipe, tmp_path, environ=ENVIRON) as synthesizer:
            report = await synthesizer.read_batch([PROBLEM, OTHER])
            assert report == BatchReport(read=6, missing=(), failed={}, unknown=())
            for problem in (PROBLEM, OTHER):
                (draft,) = await synthesizer.drafts(problem)
                assert isinstance(draft, Draft) and len(draft.solutions) == 3
            assert synthesizer.usage.cache_hits == 6 and not served.bodies


async def test_lines_that_are_missing_or_failed_are_named_and_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = await write(tmp_path / "requests.jsonl")
    names = [line["custom_id"] for line in lines]
    answered = [replied(line, good(line["body"])) for line in lines]
    answered[1] = {"custom_id": names[1], "response": None, "error": {"message": "expired"}}
    answered[2]["response"] = {"status_code": 400, "body": {"error": "too long"}}
    answered[3]["response"]["body"] = {"choices": []}
    del answered[4]
    text = [json.dumps(line) for line in answered]
    text += ["", "{half", json.dumps({**answered[0], "custom_id": "problem_x.solver.0.ab"})]
    replies = tmp_path / "replies.jsonl"
    await asyncio.to_thread(replies.write_text, "\n".join(text))
    async with serve(good) as served:
        recipe = make_recipe(served.url, batch="read", replies=str(replies), **SETTINGS)
        async with Synthesizer(recipe, tmp_path, environ=ENVIRON) as synthesizer:
            report = await synthesizer.read_batch([PROBLEM, OTHER])
            assert report.read == 2 and report.missing == (names[4],)
            assert report.unknown == ("problem_x.solver.0.ab",)
            assert list(report.failed) == [*names[1:4], "line 7"]
            assert "expired" in report.failed[names[1]] and "400" in report.failed[names[2]]
            assert synthesizer.usage.failures == {"batch_missing": 1, "batch_failed": 4}
            assert all(name in caplog.text for name in names[1:5])
            for problem in (PROBLEM, OTHER):
                await synthesizer.drafts(problem)
            assert len(served.bodies) == 4


async def test_replies_to_other_settings_are_not_taken(tmp_path: Path) -> None:
    lines = await write(tmp_path / "requests.jsonl")
    text = "\n".join(json.dumps(replied(line, good(line["body"]))) for line in lines)
    replies = tmp_path / "replies.jsonl"
    await asyncio.to_thread(replies.write_text, text)
    recipe = make_recipe(
        "http://localhost:1/v1", batch="read", replies=str(replies), temperature=0.1, **SETTINGS
    )
    async with Synthesizer(recipe, tmp_path, environ=ENVIRON) as synthesizer:
        report = await synthesizer.read_batch([PROBLEM, OTHER])
    assert (report.read, len(report.missing), len(report.unknown)) == (0, 6, 6)


async def test_a_reply_file_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    recipe = make_recipe("http://localhost:1/v1", batch="read", replies=str(tmp_path / "none"))
    async with Synthesizer(recipe, tmp_path, environ=ENVIRON) as synthesizer:
        with pytest.raises(ConfigError, match=r"llm\.replies=.*none"):
            await synthesizer.read_batch([PROBLEM])
