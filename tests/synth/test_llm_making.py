"""From a server's replies to a verified environment: the verifier's message repairs a draft."""

import asyncio
from pathlib import Path

import pytest

from configs.synth import ExtractRecipe, SynthRecipe, VerifyRecipe
from synth.court import Court
from synth.llm.synthesizer import Synthesizer
from synth.making import Maker
from tests.synth.llm_server import (
    ENVIRON,
    ENVIRONMENT,
    PROBLEM,
    Answer,
    Pauses,
    make_recipe,
    serve,
)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_what_the_verifier_refuses_is_repaired_and_made(tmp_path: Path) -> None:
    # The oracle peeks, then the reference is wrong, then all is well.
    peeks = ENVIRONMENT.replace('int((yield "position", {}))', "self._floor")
    wrong = ENVIRONMENT.replace(
        "+ 2 * abs(origin - target)\n            floor", "\n            floor"
    )
    assert ENVIRONMENT not in (peeks, wrong)
    script = [Answer(text=text) for text in (peeks, wrong, ENVIRONMENT)]
    verify = VerifyRecipe(configs=2, drawn=3)
    async with serve(script) as served:
        llm = make_recipe(served.url)
        recipe = SynthRecipe(extract=ExtractRecipe(enabled=False), llm=llm, verify=verify)
        async with (
            Court(verify) as court,
            Synthesizer(llm, tmp_path, environ=ENVIRON, sleep=Pauses()) as synthesizer,
        ):
            making = await Maker(court, recipe, synthesizer).of_problem(PROBLEM)
    (made,) = making.made
    assert made.draft.origin == "llm" and len(made.tasks) == 2 and making.drafts == 3
    assert "2 repairs" in made.draft.notes[-1]
    said = [body["messages"][-1]["content"] for body in served.bodies[1:]]
    assert "oracle reaches inside" in said[0] and "self._floor" in said[0]
    assert "reference: it gives" in said[1] and len(said) == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_code_that_does_harm_or_does_not_end_is_never_made(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    malicious = ENVIRONMENT.replace(
        "TOP_FLOOR = 30", f"TOP_FLOOR = 30\nopen('{harm}', 'w').close()"
    )
    endless = ENVIRONMENT.replace("return self._floor\n", "while True:\n            pass\n")
    assert ENVIRONMENT not in (malicious, endless)
    verify = VerifyRecipe(configs=2, drawn=3, step_timeout_s=1.0)
    async with serve([Answer(text=text) for text in (malicious, endless)]) as served:
        llm = make_recipe(served.url, repairs=1)
        recipe = SynthRecipe(extract=ExtractRecipe(enabled=False), llm=llm, verify=verify)
        async with (
            Court(verify) as court,
            Synthesizer(llm, tmp_path, environ=ENVIRON, sleep=Pauses()) as synthesizer,
        ):
            making = await Maker(court, recipe, synthesizer).of_problem(PROBLEM)
    said = served.bodies[1]["messages"][-1]["content"]
    assert "open" in said
    assert not making.made and making.drafts == 2
    assert [refusal.reason for refusal in making.refusals] == ["timeout"]
    assert not await asyncio.to_thread(harm.exists)
