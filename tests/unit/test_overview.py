"""Conditions beside each other: pairing, averages, tests, what must not be mixed. The numbers are worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.runs import made_run
from xtransplant import stats
from xtransplant.overview import Unfinished, overview

VANILLA = [1, 1, 1, 1, 1, 1, 0, 0, 1, 0]
MOVED = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0]


def test_a_difference_is_paired_by_document_whatever_the_order_of_the_samples(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, "vanilla", red=VANILLA), made_run(tmp_path, "ffn 3>1", red=MOVED)]
    [block] = overview(runs).blocks
    [row] = block.rows
    cell = row.cells["ffn 3>1"]
    assert (block.metric, block.conditions, row.label) == ("acc", ["vanilla", "ffn 3>1"], "en-sw")
    assert (cell.score, cell.documents, cell.trivial) == pytest.approx((0.1, 10, 0.25))
    assert cell.difference == pytest.approx(-0.6)
    # Six documents got worse, none better: 2 / 2^6.
    assert cell.p == pytest.approx(0.03125)
    assert cell.test == "McNemar's test"
    assert cell.interval == stats.paired_interval(np.array(MOVED), np.array(VANILLA))
    assert cell.stderr == pytest.approx(0.1)  # variance 0.9 / 9, of ten documents
    vanilla = row.cells["vanilla"]
    assert (vanilla.difference, vanilla.interval, vanilla.p) == (None, None, None)


def test_the_documents_of_several_tasks_are_pooled(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "vanilla", red=[1, 0], blue=[0, 0, 0, 1]),
        made_run(tmp_path, "ffn 3>1", red=[0, 0], blue=[1, 1, 1, 1]),
    ]
    [block] = overview(runs).blocks
    cell = block.rows[0].cells["ffn 3>1"]
    assert (cell.score, cell.difference, cell.documents) == pytest.approx((4 / 6, 2 / 6, 6))
    assert cell.p == pytest.approx(2 * (1 + 4) / 2**4)  # three up, one down


def test_averages_over_documents_and_over_languages(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "vanilla", "en-de", red=[0, 0, 1, 1]),
        made_run(tmp_path, "ffn 3>1", "en-de", red=[1, 1, 1, 1]),
        made_run(tmp_path, "vanilla", "en-sw", red=[1, 0]),
        made_run(tmp_path, "ffn 3>1", "en-sw", red=[0, 0]),
        # It has no transplant, so it has no part in the averages.
        made_run(tmp_path, "vanilla", "en-tr", red=[1, 1]),
    ]
    [block] = overview(runs).blocks
    assert [row.label for row in block.rows] == ["en-de", "en-sw", "en-tr"]
    assert [row.label for row in block.averaged] == ["en-de", "en-sw"]
    micro, macro = block.averages["micro"], block.averages["macro"]
    assert (micro["vanilla"].score, macro["vanilla"].score) == pytest.approx((3 / 6, 0.5))
    assert (micro["ffn 3>1"].score, macro["ffn 3>1"].score) == pytest.approx((4 / 6, 0.5))
    assert micro["ffn 3>1"].difference == pytest.approx(1 / 6)
    assert macro["ffn 3>1"].difference == pytest.approx(0.0)
    for average in (micro["ffn 3>1"], macro["ffn 3>1"]):
        assert (average.documents, average.trivial) == (6, 0.25)
        assert average.interval is not None and average.difference is not None
        assert average.interval[0] <= average.difference <= average.interval[1]


def test_translations_of_a_question_are_one_question(tmp_path: Path) -> None:
    """Three languages that always say the same are no more certain than one."""
    values = {"vanilla": [1, 0, 1, 0, 1, 0, 0, 1], "ffn 3>1": [1, 1, 1, 1, 1, 0, 0, 0]}
    pairs = ["en-de", "en-sw", "en-tr"]
    runs = [made_run(tmp_path, name, pair, red=scores) for name, scores in values.items() for pair in pairs]
    [block] = overview(runs).blocks
    alone = stats.bootstrap_interval(np.subtract(values["ffn 3>1"], values["vanilla"]).astype(float))
    assert block.averages["micro"]["ffn 3>1"].interval == pytest.approx(alone)


def test_a_condition_that_no_pair_shares_leaves_no_averages(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, f"ffn {n}>1", pair, red=[0, 1]) for n, pair in enumerate(["en-de", "en-sw"])]
    [block] = overview(runs).blocks
    assert (block.averaged, block.averages) == ([], {})
    [alone] = overview([made_run(tmp_path, "vanilla", red=[0, 1])]).blocks
    assert alone.averages == {}  # it would be the row again


@pytest.mark.parametrize("given", [{"seed": 2}, {"task": {"tasks": ["red_{lang}"], "num_fewshot": 2}}])
def test_other_settings_are_another_block_that_says_which(tmp_path: Path, given: dict[str, Any]) -> None:
    runs = [made_run(tmp_path, "vanilla", red=[0, 1]), made_run(tmp_path, "ffn 3>1", given=given, red=[1, 1])]
    found = overview(runs)
    assert [len(block.rows[0].cells) for block in found.blocks] == [1, 1]
    assert found.comparisons() == {}
    shown = sorted(block.settings for block in found.blocks)
    assert shown == ["seed=1", "seed=2"] if "seed" in given else all("task.num_fewshot=" in each for each in shown)


def test_other_weights_are_another_block(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, "vanilla", red=[0, 1]), made_run(tmp_path, "ffn 3>1", red=[1, 1])]
    runs[1].manifest["model"] = {"files": {"model.safetensors": "new"}}
    assert all(block.settings.startswith("weights=") for block in overview(runs).blocks)


def test_other_documents_are_another_row_and_in_no_average(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "vanilla", red=[0, 1]),
        made_run(tmp_path, "ffn 3>1", red=[1, 1, 1]),
        made_run(tmp_path, "vanilla", "en-de", red=[0, 1]),
        made_run(tmp_path, "ffn 3>1", "en-de", red=[1, 1]),
    ]
    [block] = overview(runs).blocks
    assert [row.pair for row in block.rows] == ["en-de", "en-sw", "en-sw"]
    assert len({row.label for row in block.rows}) == 3
    assert block.rows[1].cells.keys() != block.rows[2].cells.keys()
    assert [row.label for row in block.averaged] == ["en-de"]


def test_metrics_are_never_averaged_with_each_other(tmp_path: Path) -> None:
    run = made_run(tmp_path, "vanilla", red=[0, 1], blue=[1, 1, 1])
    run.results["results"]["blue_sw"] = {"f1,none": 1.0}
    path = run.folder / "samples_blue_sw.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"acc"', '"f1"'), encoding="utf-8")
    found = {block.metric: block.rows[0].cells["vanilla"] for block in overview([run]).blocks}
    assert {metric: (cell.score, cell.documents, cell.trivial) for metric, cell in found.items()} == {
        "acc": (0.5, 2, 0.25),
        "f1": (1.0, 3, None),
    }


def test_a_score_that_is_no_mean_over_documents_has_no_interval_and_no_micro_average(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, condition, pair, metric="chrf", result=result, red=[0.1, 0.2])
        for condition, pair, result in (
            *(("vanilla", "en-de", 30.0), ("ffn 3>1", "en-de", 28.0)),
            *(("vanilla", "en-sw", 10.0), ("ffn 3>1", "en-sw", 11.0)),
        )
    ]
    [block] = overview(runs).blocks
    cell = block.rows[0].cells["ffn 3>1"]
    assert (cell.difference, cell.interval, cell.stderr, cell.p, cell.q) == (-2.0, None, None, None, None)
    assert list(block.averages) == ["macro"]
    average = block.averages["macro"]["ffn 3>1"]
    assert (average.score, average.difference, average.interval) == (19.5, -0.5, None)


def test_scores_between_0_and_1_are_resampled_and_their_signs_flipped(tmp_path: Path) -> None:
    values = {"vanilla": [0.5, 0.25, 1.0, 0.0, 0.5, 0.5], "ffn 3>1": [0.25, 0.25, 0.5, 0.0, 0.25, 0.25]}
    runs = [made_run(tmp_path, name, metric="f1", red=scores) for name, scores in values.items()]
    [block] = overview(runs).blocks
    cell = block.rows[0].cells["ffn 3>1"]
    differences = np.subtract(values["ffn 3>1"], values["vanilla"])
    assert cell.difference == pytest.approx(-1.25 / 6)
    assert cell.interval == pytest.approx(stats.bootstrap_interval(differences))
    assert cell.test == "sign flips"
    assert cell.p == pytest.approx(1 / 8, abs=0.03)  # four differ, all one way: 2 / 2^4


def test_worst_first_with_p_adjusted_for_all_of_them(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "vanilla", red=VANILLA),
        made_run(tmp_path, "ffn 3>1", red=MOVED),
        made_run(tmp_path, "vanilla", "en-de", red=[1, 0]),
        made_run(tmp_path, "ffn 3>1", "en-de", red=[0, 0]),
        made_run(tmp_path, "attn 3>1", "en-de", red=[1, 1]),
    ]
    compared = overview(runs).comparisons()["acc"]
    assert [(each.row.label, each.condition, round(each.loss, 9)) for each in compared] == [
        ("en-sw", "ffn 3>1", 0.6),
        ("en-de", "ffn 3>1", 0.5),
        ("en-de", "attn 3>1", -0.5),
    ]
    # Benjamini and Hochberg: the smallest of three p by 3.
    assert [each.cell.p for each in compared] == pytest.approx([0.03125, 1, 1])
    assert [each.cell.q for each in compared] == pytest.approx([0.09375, 1, 1])


def test_of_errors_more_is_worse(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, name, metric="wer", higher_is_better=False, red=scores)
        for name, scores in (("vanilla", [0.5, 0.5]), ("ffn 3>1", [0.75, 0.75]), ("ffn 2>1", [0.25, 0.25]))
    ]
    found = overview(runs)
    assert not found.blocks[0].higher_is_better
    compared = found.comparisons()["wer"]
    assert [(each.condition, each.loss, each.cell.difference) for each in compared] == [
        ("ffn 3>1", 0.25, 0.25),
        ("ffn 2>1", -0.25, -0.25),
    ]


def test_the_same_run_in_two_folders_counts_once_unless_it_found_something_else(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, name=name, red=[0, 1]) for name in ("", "-copy")]
    [block] = overview(runs).blocks
    assert block.conditions == ["vanilla"]
    other = made_run(tmp_path, name="-other device", red=[1, 1])
    [block] = overview([*runs, other]).blocks
    assert {name: cell.score for name, cell in block.rows[0].cells.items()} == {"vanilla": 0.5, "vanilla (2)": 1.0}


def test_two_selections_by_one_strategy_are_two_conditions_the_same_in_every_language(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "overall", pair, name=f"-{cell}", given={"selection": cell}, red=[0, 1])
        for pair in ("en-de", "en-sw")
        for cell in ("first", "second")
    ]
    [block] = overview(runs).blocks
    assert len(block.conditions) == 2 and all(name.startswith("overall #") for name in block.conditions)
    assert len(block.averaged) == 2


def test_a_run_without_a_result_is_named_where_it_would_be(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "vanilla", red=[0, 1]),
        made_run(tmp_path, "ffn 3>1", red=[0, 1]),
        made_run(tmp_path, "vanilla", "en-de", red=[0, 1]),
    ]
    args = runs[1].results["config"]["model_args"]

    def failed(**facts: Any) -> Unfinished:
        labels = {"model_name": "tiny", "task_name": "colour", "split": "unseen", "model_args": args}
        return Unfinished(tmp_path / "gone", "failed", "The disk is full", labels | facts)

    here = failed(language_pair="en-de", condition="ffn 3>1")
    no_row = failed(language_pair="en-tr", condition="ffn 9>9")
    there_is_one = failed(language_pair="en-sw", condition="vanilla")
    elsewhere = failed(language_pair="en-de", condition="ffn 3>1", model_args={**args, "seed": 7})
    unknown = Unfinished(tmp_path / "lost", "failed", "no idea")
    found = overview(runs, [here, no_row, there_is_one, elsewhere, unknown])
    [block] = found.blocks
    assert {row.label: row.missing for row in block.rows} == {
        "en-de": {"ffn 3>1": here},
        "en-sw": {},
        "en-tr": {"ffn 9>9": no_row},
    }
    assert block.conditions == ["vanilla", "ffn 3>1", "ffn 9>9"]
    assert found.unplaced == [elsewhere, unknown]
    # What failed everywhere does not take the averages of the rest away.
    assert [row.label for row in block.averaged] == ["en-sw"]


def test_records_have_every_cell_and_average_with_all_digits(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, "vanilla", red=[0, 1, 1]),
        made_run(tmp_path, "ffn 3>1", red=[0, 0, 1]),
        made_run(tmp_path, "vanilla", "en-de", red=[0, 1, 1]),
    ]
    lines = overview(runs, [Unfinished(tmp_path / "lost", "not finished")]).records()
    assert len({tuple(line) for line in lines}) == 1
    shown = [(line["kind"], line["pair"], line["condition"], line["status"], line["score"]) for line in lines]
    assert shown == [
        ("pair", "en-de", "vanilla", "finished", 2 / 3),
        ("pair", "en-de", "ffn 3>1", "missing", None),
        ("pair", "en-sw", "vanilla", "finished", 2 / 3),
        ("pair", "en-sw", "ffn 3>1", "finished", 1 / 3),
        ("micro", None, "vanilla", "finished", pytest.approx(2 / 3)),
        ("micro", None, "ffn 3>1", "finished", pytest.approx(1 / 3)),
        ("macro", None, "vanilla", "finished", pytest.approx(2 / 3)),
        ("macro", None, "ffn 3>1", "finished", pytest.approx(1 / 3)),
        (None, None, None, "not finished", None),
    ]
    assert (lines[3]["vanilla"], lines[3]["difference"], lines[3]["pairs"]) == (2 / 3, -1 / 3, 1)
    assert lines[4]["pairs"] == 1
