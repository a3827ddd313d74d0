"""What a report says beside its numbers: where sets come from, how it is made again."""

import shlex
from html import unescape
from pathlib import Path

from configs.load import load
from rollout import rundir
from rollout.report import page
from rollout.report.learning import set_notes
from rollout.report.lines import read_settings
from tests.recipes import BASICS


def prepared(run_dir: Path, *settings: str) -> Path:
    return rundir.prepare(load([BASICS, f"run.dir={run_dir}", *settings]))


def test_the_command_that_makes_it_again_can_be_pasted(tmp_path: Path) -> None:
    run_dir = prepared(tmp_path / "a $run & more")
    html = page.write(run_dir).read_text(encoding="utf-8")
    assert f"python launch.py report {shlex.quote(str(run_dir))}<" in unescape(html)


def test_a_set_is_told_by_what_it_is_made_of(tmp_path: Path) -> None:
    mixed = "eval.sets.mixed.envs=['sum_list', 'basics/bubble_sort']"
    settings = read_settings(prepared(tmp_path / "run", mixed, "eval.sets.mixed.count=6"))
    trained = "sum_list, find_max, count_even, guess_number, walk_list"
    names = ["fresh", "harder", "held_out", "mixed", "not_in_the_recipe"]
    assert set_notes(settings, names) == [
        f"Set fresh: 400 configurations of {trained}; level 0, that of training.",
        f"Set harder: 400 configurations of {trained}; level 1, where 0 is that of training.",
        "Set held_out: 80 configurations of running_gcd, bubble_sort; level 0, that of training; "
        "not trained on in this run.",
        "Set mixed: 6 configurations of sum_list, basics/bubble_sort; level 0, that of training; "
        "not trained on in this run: basics/bubble_sort.",
    ]


def test_where_nothing_is_trained_nothing_is_said_of_training_on_a_set(tmp_path: Path) -> None:
    settings = read_settings(prepared(tmp_path / "run", "learner.steps=0"))
    (note,) = set_notes(settings, ["unseen"])
    assert note == "Set unseen: 40 configurations of price_total; level 0, that of training."
