"""Settings of the factory that contradict each other are said with field, value and cure."""

import pytest

from configs.load import ConfigError, convert, find, read
from configs.synth import SynthRecipe
from synth.cli import main
from synth.contradictions import check

MODEL = find("tiny_policy/policy")


def recipe(*words: str) -> SynthRecipe:
    return convert(read(["synth.toml", *words]), SynthRecipe)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["filters.min_calls=300"], "filters.min_calls=300 is over filters.max_calls=256"),
        (["filters.above=0.9", "filters.up_to=0.5"], "filters.above=0.9 is not below"),
        (["verify.configs=99"], "raise verify.drawn"),
        (["split.test=0.6", "split.validation=0.4"], "leave nothing to train on"),
        (["filters.stronger=big"], "filters.stronger='big' does nothing without filters.model"),
        (["filters.model=/nowhere"], "'/nowhere' is no directory of a model"),
        (["filters.model=x", "filters.base_url=here"], "filters.base_url='here' is no address"),
        (
            [
                "filters.model=x",
                "filters.base_url=https://api.example.com/v1",
                "filters.key_env=NO_SUCH_KEY",
            ],
            "filters.key_env='NO_SUCH_KEY'",
        ),
        ([f"filters.model={MODEL}"], "filters.max_context_tokens=32768 is more than the 1024"),
    ],
)
def test_a_contradiction_is_said(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(recipe(*words))
    assert told in str(caught.value)


def test_what_goes_together_is_no_contradiction() -> None:
    check(recipe())
    check(recipe(f"filters.model={MODEL}", "filters.max_context_tokens=1024"))
    check(recipe("filters.model=any", "filters.base_url=http://127.0.0.1:1/v1"))


def test_a_directory_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="out='' names no directory"):
        main(["out="])


def test_a_list_of_words_names_them() -> None:
    with pytest.raises(ConfigError, match=r"a list of words from rename \| distract"):
        recipe("variation.kinds=7")
