"""Conditions against each other: what may be compared, every number, and what it costs. Worked by hand, or slowly."""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.grids import hand_grid
from tests.unit.runs import a_sample, made_run
from xtransplant import stats, tables
from xtransplant.compare import Comparison, Result, compare
from xtransplant.conditions import KINDS, ORACLES
from xtransplant.grid import Grid
from xtransplant.overview import overview
from xtransplant.record import Run
from xtransplant.types import Cell, Component, XTransplantError

VANILLA = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
BETTER = [1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
BASE: dict[str, Any] = {"files": {"model.safetensors": "aa"}, "adapter": None, "dtype": "float32", "path": "base"}
ADAPTER: dict[str, Any] = {"path": "gone", "files": {"adapter_model.safetensors": "bb", "adapter_config.json": "cc"}}
TUNED = BASE | {"adapter": ADAPTER}


def a_run(place: Path, condition: str = "vanilla", pair: str = "en-sw", **given: Any) -> Run:
    """A run with a model and a cost; `facts` go to its manifest, `args` to its config."""
    facts, args = given.pop("facts", {}), given.pop("args", {})
    run = made_run(place, condition, pair, given=args, **given)
    run.manifest |= {"job": "evaluate", "model": BASE, "cost": {"seconds": 2.0, "tokens": 100, "flops": 1e9}, **facts}
    return run


def a_training(folder: Path, **facts: Any) -> Run:
    manifest = {
        "job": "sft", "model": BASE, "model_name": "tiny", "data": "aya", "method": "lora", "languages": ["de", "sw"],
        "files": {**ADAPTER["files"], "training.jsonl": "dd"}, "cost": {"seconds": 60.0, "tokens": 5000, "flops": 6e10},
    }  # fmt: skip
    return Run(folder, manifest | facts, {})


def a_grid(place: Path, made: Grid, name: str = "grid", pair: str = "en-sw") -> Run:
    """Its documents have the keys of a run's, and its samples what they ask."""
    target = pair.removeprefix("en-")
    made = replace(made, documents=[each.replace("/", "/k") for each in made.documents])
    folder = place / f"{name}-{pair}-{made.sha256[:8]}"
    made.save(folder / "grid.npz")
    rows = [a_sample(row, "acc", float(value)) for row, value in enumerate(made.vanilla[0])]
    (folder / f"samples_red_{target}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tasks = {f"red_{target}": {"documents": len(rows), "keys_sha256": f"{len(rows)}{target}"}}
    facts = {
        "job": "grid", "model_name": "tiny", "model": BASE, "task_name": "colour", "language_pair": pair,
        "split": "unseen", "control": made.meta["control"], "intervention": {}, "tasks": tasks, "files": {},
        "grid_sha256": made.sha256, "cost": {"seconds": 30.0, "tokens": 900, "flops": 4e10},
    }  # fmt: skip
    task = {"tasks": ["red_{lang}"], "languages": {}}
    args = {"task": task, "language_pair": {"source": "en", "target": target}, "seed": 1}
    return Run(folder, facts, {"config": {"model_args": args}})


def results(found: Comparison, **wanted: Any) -> list[Result]:
    return [
        each
        for group in found.groups
        for each in group.results
        if all(getattr(each, name) == value for name, value in wanted.items())
    ]


def result(found: Comparison, **wanted: Any) -> Result:
    [one] = results(found, **wanted)
    return one


# --- Numbers ---------------------------------------------------------------------------------------------------------


def test_one_language_worked_by_hand(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, red=VANILLA), a_run(tmp_path, "ffn 3>1", red=BETTER)]
    found = result(compare(runs), condition="ffn 3>1")
    assert (found.kind, found.against, found.documents) == ("transplant", "vanilla", 10)
    assert (found.score, found.vanilla, found.baseline) == (0.9, 0.4, 0.4)
    assert found.difference == pytest.approx(0.5)
    assert (found.wins, found.losses, found.odds_ratio) == (6, 1, 6.0)
    # Seven documents differ, one of them for the worse: 2 (1 + 7) / 2^7.
    assert (found.p, found.p_holm) == pytest.approx((16 / 128, 16 / 128))
    assert found.test == "McNemar's exact test"
    assert found.effect == pytest.approx(2 * math.asin(math.sqrt(0.9)) - 2 * math.asin(math.sqrt(0.4)))
    assert found.effect_name == "Cohen's h"
    assert found.minimum_detectable == stats.detectable(10, 0.7)
    assert found.could_be_chance is True
    differences = np.subtract(BETTER, VANILLA).astype(float)
    assert (found.low, found.high) == pytest.approx(stats.bootstrap_interval(differences), abs=1e-6)
    vanilla = result(compare(runs), condition="vanilla")
    assert (vanilla.against, vanilla.difference, vanilla.p, vanilla.could_be_chance) == (None, None, None, None)
    assert (vanilla.score, vanilla.vanilla) == (0.4, 0.4)


def test_what_is_beyond_chance_is_not_said_to_be_chance(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, red=[0] * 12), a_run(tmp_path, "ffn 3>1", red=[1] * 8 + [0] * 4)]
    found = result(compare(runs), condition="ffn 3>1")
    assert found.p == pytest.approx(2 / 2**8)
    assert found.could_be_chance is False


def test_no_document_that_differs_is_not_certainty(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, red=VANILLA), a_run(tmp_path, "ffn 3>1", red=VANILLA)]
    found = result(compare(runs), condition="ffn 3>1")
    assert (found.difference, found.p, found.wins, found.losses, found.odds_ratio) == (0, 1, 0, 0, None)
    assert found.low is not None and found.high is not None
    assert found.low < -0.2 and found.high > 0.2
    twice = [*runs, a_run(tmp_path, "vanilla", "en-de", red=VANILLA), a_run(tmp_path, "ffn 3>1", "en-de", red=VANILLA)]
    pooled = result(compare(twice), condition="ffn 3>1", pooled="micro")
    assert (pooled.low, pooled.high, pooled.p, pooled.minimum_detectable) == (None, None, 1.0, None)
    assert pooled.could_be_chance is True
    # As if all that differ were wins: six of six are needed (2 / 2^6 < 0.05, 2 / 2^5 > 0.05).
    expected = found.minimum_detectable
    assert expected is not None
    chance = sum(math.comb(10, n) * expected**n * (1 - expected) ** (10 - n) for n in range(6, 11))
    assert chance == pytest.approx(0.8, abs=1e-3)


def test_documents_that_all_differ_alike_are_not_certainty(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, red=[0] * 8), a_run(tmp_path, "ffn 3>1", red=[1] * 8)]
    found = result(compare(runs), condition="ffn 3>1")
    assert found.low is not None and 0 < found.low < 0.8 and found.high == 1
    assert found.could_be_chance is False
    one = [a_run(tmp_path / "one", red=[0.25], metric="f1"), a_run(tmp_path / "one", "b", red=[0.5], metric="f1")]
    alone = result(compare(one), condition="b")
    assert (alone.effect, alone.minimum_detectable, alone.could_be_chance) == (None, None, True)
    # Pooled, or of scores beside 0 and 1, there is none, and p alone says what it is.
    many = [
        a_run(tmp_path / metric, name, pair, red=[score] * 8, metric=metric)
        for metric, scores in (("acc", (0, 1)), ("f1", (0.1, 0.4)))
        for pair in ("en-de", "en-sw")
        for name, score in zip(("vanilla", "b"), scores, strict=True)
    ]
    every = compare(many)
    for each in [*results(every, condition="b", pair=None), *results(every, condition="b", effect_name="d_z")]:
        assert (each.low, each.high, each.minimum_detectable, each.could_be_chance) == (None, None, None, False)
        assert each.p == pytest.approx(2 / 2**8, abs=0.003)


def test_few_large_gains_are_better_than_many_small_losses_are_worse(tmp_path: Path) -> None:
    before, after = [0.5] * 40, [1.0] * 15 + [0.49] * 25
    runs = [a_run(tmp_path, metric="f1", red=before), a_run(tmp_path, "ffn 3>1", metric="f1", red=after)]
    found = compare(runs)
    one = result(found, condition="ffn 3>1")
    assert (one.wins, one.losses, one.could_be_chance) == (15, 25, False)
    [line] = [line for line in tables.comparison(found).splitlines() if "ffn 3>1" in line and "15:25" in line]
    assert line.split()[-1] == "better"


def test_holm_is_over_the_languages_of_a_condition(tmp_path: Path) -> None:
    # wins, none lost: p = 2 / 2^wins
    wins = {"en-de": 6, "en-sw": 8, "en-tr": 3}
    runs = []
    for pair, count in wins.items():
        runs += [a_run(tmp_path, "vanilla", pair, red=[0] * 10)]
        runs += [a_run(tmp_path, "ffn 3>1", pair, red=[1] * count + [0] * (10 - count))]
        runs += [a_run(tmp_path, "ffn 2>1", pair, red=[0] * 9 + [1])]
    found = compare(runs)
    p = {pair: 2 / 2**count for pair, count in wins.items()}
    corrected = {"en-sw": 3 * p["en-sw"], "en-de": 2 * p["en-de"], "en-tr": p["en-tr"]}
    for pair in wins:
        one = result(found, condition="ffn 3>1", pair=pair)
        assert (one.p, one.p_holm) == pytest.approx((p[pair], corrected[pair]))
        assert one.could_be_chance is (corrected[pair] >= 0.05)
    assert {each.p_holm for each in results(found, condition="ffn 2>1", pooled=None)} == {1.0}


def test_pooled_over_languages(tmp_path: Path) -> None:
    scores = {"en-de": ([0, 0, 1, 0], [1, 1, 1, 1]), "en-sw": ([1, 0], [0, 0])}
    runs = []
    for pair, (before, after) in scores.items():
        runs += [a_run(tmp_path, "vanilla", pair, red=before), a_run(tmp_path, "ffn 3>1", pair, red=after)]
    found = compare(runs)
    micro, macro = (result(found, condition="ffn 3>1", pooled=name) for name in ("micro", "macro"))
    assert (micro.pair, micro.documents, micro.pairs, micro.p_holm) == (None, 6, 2, None)
    assert (micro.score, micro.vanilla, micro.difference) == pytest.approx((4 / 6, 2 / 6, 2 / 6))
    assert (macro.score, macro.vanilla, macro.difference) == pytest.approx((0.5, 3 / 8, 1 / 8))
    assert (micro.wins, micro.losses, macro.wins, macro.losses) == (3, 1, 3, 1)
    assert micro.effect == pytest.approx(stats.cohens_h(4 / 6, 2 / 6))
    assert (micro.cost.seconds, micro.cost.tokens, micro.cost.flops) == (4.0, 200, 2e9)
    # A question has the same key in both languages, hence the same sign: k0 and k1 are in both.
    for one, weights in ((micro, (1 / 6, 1 / 6)), (macro, (1 / 8, 1 / 4))):
        units = [weights[0] - weights[1], weights[0], 0.0, weights[0]]
        flips = [abs(sum(np.multiply(signs, units))) for signs in itertools.product((-1, 1), repeat=4)]
        exact = np.mean([flip >= abs(sum(units)) - 1e-12 for flip in flips])
        assert one.p == pytest.approx(exact, abs=0.02)
        assert one.test == "sign flips of questions"


def test_a_pooled_interval_draws_a_question_with_its_translations(tmp_path: Path) -> None:
    """Against a loop over resamples that does what is said, and nothing else."""
    generator = np.random.default_rng(5)
    pairs = ("en-de", "en-sw", "en-tr")
    hard = generator.random(40)
    values = {pair: [(generator.random(40) < hard).astype(int), (generator.random(40) < hard + 0.2).astype(int)]
              for pair in pairs}  # fmt: skip
    runs = []
    for pair, (before, after) in values.items():
        runs += [a_run(tmp_path, "vanilla", pair, red=before.tolist())]
        runs += [a_run(tmp_path, "ffn 3>1", pair, red=after.tolist())]
    found = result(compare(runs), condition="ffn 3>1", pooled="micro")
    drawn = []
    for _ in range(4000):
        rows = generator.integers(40, size=40)
        drawn.append(np.mean([after[rows] - before[rows] for before, after in values.values()]))
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.012)
    assert found.minimum_detectable == pytest.approx((1.95996 + 0.84162) * np.std(drawn), rel=0.05)


def test_scores_between_0_and_1(tmp_path: Path) -> None:
    before, after = [0.5, 0.25, 1.0, 0.0, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5, 0.75, 0.75]
    runs = [a_run(tmp_path, metric="f1", red=before), a_run(tmp_path, "ffn 3>1", metric="f1", red=after)]
    found = result(compare(runs), condition="ffn 3>1")
    differences = np.subtract(after, before)
    spread = np.std(differences, ddof=1)
    assert found.effect == pytest.approx(differences.mean() / spread)
    assert (found.effect_name, found.odds_ratio) == ("d_z", None)
    assert (found.wins, found.losses, found.test) == (4, 1, "sign flips")
    flips = [abs(sum(np.multiply(signs, differences))) for signs in itertools.product((-1, 1), repeat=6)]
    assert found.p == pytest.approx(np.mean([flip >= abs(differences.sum()) - 1e-12 for flip in flips]), abs=0.02)
    assert found.minimum_detectable == pytest.approx((1.95996 + 0.84162) * spread / 6**0.5, rel=1e-4)


def test_errors_are_better_when_lower(tmp_path: Path) -> None:
    runs = [
        a_run(tmp_path, name, metric="error", higher_is_better=False, red=red)
        for name, red in (("vanilla", [1, 1, 1]), ("ffn 3>1", [0, 0, 1]))
    ]
    found = result(compare(runs), condition="ffn 3>1")
    assert found.difference == pytest.approx(-2 / 3)
    assert (found.wins, found.losses) == (2, 0)


def test_a_metric_that_is_no_mean_has_a_difference_only(tmp_path: Path) -> None:
    runs = [
        a_run(tmp_path, condition, pair, metric="chrf", result=value, red=[0.1, 0.2])
        for condition, pair, value in (
            *(("vanilla", "en-de", 30.0), ("ffn 3>1", "en-de", 34.0), ("vanilla", "en-sw", 10.0)),
            ("ffn 3>1", "en-sw", 9.0),
        )
    ]
    compared = compare(runs)
    found = result(compared, condition="ffn 3>1", pair="en-de")
    assert (found.difference, found.low, found.p, found.effect, found.wins) == (4.0, None, None, None, None)
    assert found.could_be_chance is True and "no mean over documents" in found.note
    assert any("No intervals and no tests where chrf" in note for note in compared.groups[0].notes)
    assert found.price_flops == 0  # as much as vanilla, four points of a metric beyond 1
    assert [each.pooled for each in results(compared, condition="ffn 3>1", pair=None)] == ["macro"]
    assert result(compared, condition="ffn 3>1", pooled="macro").difference == 1.5


# --- Conditions ------------------------------------------------------------------------------------------------------


def a_selection(grid: Run, strategy: str = "overall") -> dict[str, Any]:
    described = {"grid_sha256": grid.manifest["grid_sha256"], "folder": None, "intervention": {}}
    return {"transplant": {"control": "none"}, "selection": {"strategy": strategy, "grids": [described]}}


def all_kinds(place: Path) -> tuple[list[Run], list[Run], list[Run]]:
    cells = [Cell(Component.ffn, 0, 0), Cell(Component.ffn, 1, 0)]
    documents = [[0, 1]] * 5 + [[0, 0]] * 5
    real = hand_grid(documents, VANILLA, cells, 2, tasks=["red_{lang}"], split="unseen")
    other = hand_grid([[0, 1]] + [[0, 0]] * 9, VANILLA, cells, 2, tasks=["red_{lang}"], split="unseen", control="noise")
    sample = hand_grid(documents[::-1], VANILLA, cells, 2, tasks=["red_{lang}"], split="sample")
    grids = [a_grid(place, real), a_grid(place, other, "control"), a_grid(place, sample, "sample")]
    grids[2].manifest["split"] = "sample"
    moved = {"transplant": {"layers": [3, 1], "control": "none"}}
    runs = [
        a_run(place, red=VANILLA),
        a_run(place, "vanilla (both prompts)", red=VANILLA, args={"transplant": None, "prompt": "both"}),
        a_run(place, "ffn 3>1", red=BETTER, args=moved),
        a_run(place, "overall", red=BETTER, args=a_selection(grids[2])),
        a_run(place, "vanilla", name="-sft", red=BETTER, facts={"model": TUNED}),
        a_run(place, "overall", name="-sft", red=[1] * 10, facts={"model": TUNED}, args=a_selection(grids[2])),
    ]
    return runs, grids, [a_training(place / "training")]


def test_every_kind_of_condition(tmp_path: Path) -> None:
    runs, grids, trainings = all_kinds(tmp_path)
    found = compare(runs, grids, trainings)
    [unseen] = [group for group in found.groups if group.split == "unseen"]
    kinds = {each.condition: each.kind for each in unseen.results}
    assert kinds == {
        "vanilla": "vanilla",
        "vanilla (both prompts)": "pim",
        "ffn 3>1": "transplant",
        "overall": "strategy",
        "SFT (lora, aya, de+sw)": "sft",
        "SFT (lora, aya, de+sw) + overall": "sft+transplant",
        "upper bound (ffn)": "upper_bound",
        "control noise (ffn)": "chance",
    }
    assert tuple(kinds.values()) == KINDS
    assert {each.vanilla for each in unseen.results} == {0.4}
    assert unseen.notes == []


def test_what_was_needed_before_is_part_of_the_price(tmp_path: Path) -> None:
    runs, grids, trainings = all_kinds(tmp_path)
    found = compare(runs, grids, trainings)

    def priced(name: str) -> tuple[Any, ...]:
        one = result(found, condition=name)
        return one.training.flops, one.training.seconds, one.price_flops, one.price_seconds

    # 50 points gained with as much as vanilla takes; the grid of 4e10 and 30 s, the training of 6e10 and 60 s before.
    assert priced("ffn 3>1") == (0, 0, 0, 0)
    assert priced("overall") == pytest.approx((4e10, 30, 4e10 / 50, 30 / 50))
    assert priced("SFT (lora, aya, de+sw)") == pytest.approx((6e10, 60, 6e10 / 50, 60 / 50))
    assert priced("SFT (lora, aya, de+sw) + overall") == pytest.approx((10e10, 90, 10e10 / 60, 90 / 60))
    assert priced("vanilla (both prompts)") == (0, 0, None, None)  # no gain, no price
    # A fixed pair needs no grid.
    runs.append(a_run(tmp_path, "fixed", red=BETTER, args=a_selection(grids[2], "fixed")))
    found = compare(runs, grids, trainings)
    assert priced("fixed") == (0, 0, 0, 0)


def test_a_training_is_counted_once_for_all_languages(tmp_path: Path) -> None:
    runs = []
    for pair in ("en-de", "en-sw"):
        runs += [a_run(tmp_path, "vanilla", pair, red=VANILLA)]
        runs += [a_run(tmp_path, "vanilla", pair, name="-sft", red=BETTER, facts={"model": TUNED})]
    found = compare(runs, trainings=[a_training(tmp_path / "training")])
    for one in results(found, kind="sft"):
        assert one.training.flops == 6e10
    micro = result(found, kind="sft", pooled="micro")
    assert micro.cost.flops == 2e9
    assert micro.price_flops == pytest.approx(6e10 / 50)


def test_costs_that_are_not_recorded_are_not_zero(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, red=VANILLA), a_run(tmp_path, "ffn 3>1", red=BETTER)]
    del runs[1].manifest["cost"]
    lines = compare(runs).records()
    [line] = [each for each in lines if each["condition"] == "ffn 3>1"]
    assert (line["seconds"], line["tokens"], line["flops"], line["price_flops"]) == (None, None, None, None)
    assert (line["training_seconds"], line["training_flops"]) == (0, 0)
    unknown = a_run(tmp_path, name="-sft", red=BETTER, facts={"model": TUNED})
    found = result(compare([*runs, unknown]), kind="sft")
    assert (found.condition, found.training.flops) == ("SFT (gone)", None)


def test_a_training_is_found_where_the_adapter_lies_and_only_if_it_is_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(a_training(folder).manifest), encoding="utf-8")
    for weights, name in (("bb", "SFT (lora, aya, de+sw)"), ("other", "SFT (training)")):
        files = ADAPTER["files"] | {"adapter_model.safetensors": weights}
        model = BASE | {"adapter": {"path": str(folder), "files": files}}
        runs = [a_run(tmp_path / weights, red=VANILLA)]
        runs += [a_run(tmp_path / weights, name="-sft", red=BETTER, facts={"model": model})]
        assert result(compare(runs), kind="sft").condition == name


def test_a_model_that_was_trained_whole_is_compared_with_its_base(tmp_path: Path) -> None:
    tuned = BASE | {"files": {"model.safetensors": "ee", "config.json": "ff"}, "path": "gone"}
    training = a_training(
        tmp_path / "training", method="full", files={"model.safetensors": "ee", "config.json": "ff", "more": "gg"}
    )
    run = a_run(tmp_path, name="-sft", red=BETTER, facts={"model": tuned, "model_name": "mine"})
    runs = [a_run(tmp_path, red=VANILLA), run]
    found = result(compare(runs, trainings=[training]), kind="sft")
    assert found.condition == "SFT (full, aya, de+sw)"
    assert found.difference == pytest.approx(0.5)
    # Without its training it is a model of its own.
    assert [group.model for group in compare(runs).groups] == ["mine", "tiny"]


def test_a_training_on_what_was_trained_costs_both(tmp_path: Path) -> None:
    whole = BASE | {"files": {"model.safetensors": "ee"}, "path": "gone"}
    first = a_training(tmp_path / "first", method="full", data="xnli", files={"model.safetensors": "ee"})
    second = a_training(tmp_path / "second", model=whole)
    run = a_run(tmp_path, name="-sft", red=BETTER, facts={"model": whole | {"adapter": ADAPTER}})
    found = result(compare([a_run(tmp_path, red=VANILLA), run], trainings=[second, first]), kind="sft")
    assert found.condition == "SFT (lora, aya, de+sw) after SFT (full, xnli, de+sw)"
    assert found.training.flops == 12e10


def test_an_oracle_has_no_p_and_says_what_its_control_reaches(tmp_path: Path) -> None:
    runs, grids, _ = all_kinds(tmp_path)
    found = compare(runs[:1], grids[:2])
    bound, control = (result(found, kind=kind) for kind in ORACLES)
    assert (bound.score, bound.vanilla, bound.difference) == pytest.approx((0.5, 0.4, 0.1))
    for one in (bound, control):
        assert (one.p, one.p_holm, one.low, one.high, one.effect, one.minimum_detectable) == (None,) * 6
        assert (one.cost.flops, one.price_flops) == (4e10, None)
    assert control.score == pytest.approx(0.1)
    # Four of ten more, all one way: the interval of the difference leaves 0 out.
    assert (bound.could_be_chance, control.could_be_chance) == (False, True)
    assert "controls reach: noise 0.100" in bound.note
    assert "real vectors reach 0.500" in control.note
    alone = result(compare(runs[:1], grids[:1]), kind="upper_bound")
    assert alone.could_be_chance is True and "no control grid" in alone.note


def test_a_control_stands_beside_every_grid_that_it_fits(tmp_path: Path) -> None:
    cells = [Cell(Component.ffn, 0, 0), Cell(Component.ffn, 1, 0)]

    def made(scores: list[list[int]], number: int, **changes: Any) -> Run:
        given = hand_grid(scores, VANILLA, cells[:number], 2, tasks=["red_{lang}"], split="unseen", **changes)
        return a_grid(tmp_path, given)

    grids = [made([[0, 1]] * 10, 2), made([[0]] * 10, 1, pairs="diagonal"), made([[0, 1]] * 10, 2, control="noise")]
    attn = [Cell(Component.attn, 0, 0)]
    grids.append(a_grid(tmp_path, hand_grid([[1]] * 10, VANILLA, attn, 2, tasks=["red_{lang}"], split="unseen")))
    found = compare([], grids)
    assert {each.condition: (each.score, each.note) for each in results(found, kind="chance")} == {
        "control noise (ffn)": (1, "the real vectors reach 1.000 in the same 2 cells"),
        "control noise (ffn, diagonal)": (0, "the real vectors reach 0.000 in the same 1 cell"),
    }
    notes = {each.condition: each.note for each in results(found, kind="upper_bound")}
    assert "controls reach: noise 1.000, less by 0.000" in notes["upper bound (ffn)"]
    assert "controls reach: noise 0.000, less by 0.000" in notes["upper bound (ffn, diagonal)"]
    assert "no control grid" in notes["upper bound (attn)"]


def test_a_grid_has_its_own_vanilla(tmp_path: Path) -> None:
    _, grids, _ = all_kinds(tmp_path)
    found = compare([], grids[:1])
    vanilla = result(found, kind="vanilla")
    assert (vanilla.score, vanilla.cost.flops) == (0.4, None)
    assert result(found, kind="upper_bound").difference == pytest.approx(0.1)


def test_against_another_condition(tmp_path: Path) -> None:
    runs, grids, trainings = all_kinds(tmp_path)
    for given in ("sft", "SFT (lora, aya, de+sw)"):
        found = compare(runs, grids, trainings, against=given)
        moved = result(found, condition="ffn 3>1", against="SFT (lora, aya, de+sw)")
        assert (moved.score, moved.baseline, moved.vanilla, moved.difference) == (0.9, 0.9, 0.4, 0.0)
        both = result(found, kind="sft+transplant", against="SFT (lora, aya, de+sw)")
        assert both.difference == pytest.approx(0.1)
        # 10 points for the grid; both have the training.
        assert both.price_flops == pytest.approx(4e10 / 10)
        assert result(found, condition="ffn 3>1", against="vanilla").difference == pytest.approx(0.5)
        assert not results(found, condition="vanilla", against="SFT (lora, aya, de+sw)")
        # In its own table the condition that all are compared with comes first, with its score alone.
        table = tables.comparison(found).split("against SFT (lora, aya, de+sw)\n\n")[1].splitlines()
        assert re.fullmatch(r"en-sw  SFT \(lora, aya, de\+sw\) +10 +0\.900 +-( +-)+ *", table[2])
    with pytest.raises(XTransplantError, match=r"against=nothing: no such condition\. Give one of: vanilla, .*overall"):
        compare(runs, grids, trainings, against="nothing")
    runs.append(a_run(tmp_path, "attn 3>1", red=BETTER))
    with pytest.raises(XTransplantError, match="several conditions are: attn 3>1, ffn 3>1"):
        compare(runs, grids, trainings, against="transplant")
    with pytest.raises(XTransplantError, match="against=upper_bound: an oracle"):
        compare(runs, grids, trainings, against="upper_bound")


def test_conditions_of_one_name_are_told_apart_and_a_copy_is_no_condition(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, red=VANILLA)]
    for name, files in (("-a", "one"), ("-b", "two"), ("-c", "two")):
        selection = {"strategy": "overall", "grids": [{"grid_sha256": files, "folder": None}]}
        runs += [a_run(tmp_path, "overall", name=name, red=BETTER, args={"selection": selection})]
    found = compare(runs)
    assert list(dict.fromkeys(each.condition for each in results(found))) == ["vanilla", "overall", "overall #2"]
    assert found.groups[0].notes == [f"overall: {runs[1].folder}.", f"overall #2: {runs[2].folder}."]
    again = a_run(tmp_path, name="-again", red=BETTER)
    found = compare([runs[0], again])
    assert [each.condition for each in results(found)] == ["vanilla", "vanilla (2)"]
    assert found.groups[0].notes == [f"vanilla (2): the same run again, with another result, {again.folder}."]


def tuned_by(weights: str) -> dict[str, Any]:
    files = ADAPTER["files"] | {"adapter_model.safetensors": weights}
    return BASE | {"adapter": {"path": f"training-{weights}", "files": files}}


def test_trainings_of_one_name_have_the_same_number_in_all_languages(tmp_path: Path) -> None:
    """Whatever their runs' folders are called: else an average would be over two models."""
    trainings = [a_training(tmp_path / each, files=tuned_by(each)["adapter"]["files"]) for each in ("rank4", "rank8")]
    reds = {"rank4": VANILLA, "rank8": BETTER}
    runs = []
    for pair, order in (("en-de", ("rank4", "rank8")), ("en-sw", ("rank8", "rank4"))):
        runs.append(a_run(tmp_path, "vanilla", pair, red=VANILLA))
        for place, each in enumerate(order):
            facts = {"model": tuned_by(each)}
            runs.append(a_run(tmp_path, "vanilla", pair, name=f"-{place}", red=reds[each], facts=facts))
    found = compare(runs, trainings=trainings)
    name = "SFT (lora, aya, de+sw)"
    assert {each.score for each in results(found, condition=name)} == {0.4}
    assert {each.score for each in results(found, condition=f"{name} #2")} == {0.9}
    assert found.groups[0].notes == [f"{name}: training-rank4.", f"{name} #2: training-rank8."]
    # And in every condition.
    moved = {"transplant": {"layers": [3, 1], "control": "none"}}
    facts = {"model": tuned_by("rank8")}
    runs.append(a_run(tmp_path, "ffn 3>1", "en-sw", red=BETTER, facts=facts, args=moved))
    assert result(compare(runs, trainings=trainings), kind="sft+transplant").condition == f"{name} #2 + ffn 3>1"


def test_the_grid_of_a_fine_tuned_model_stands_beside_it(tmp_path: Path) -> None:
    cells = [Cell(Component.ffn, 0, 0), Cell(Component.ffn, 1, 0)]
    made = [hand_grid([[0, 1]] * 10, red, cells, 2, tasks=["red_{lang}"], split="unseen") for red in (VANILLA, BETTER)]
    grids = [a_grid(tmp_path, each) for each in made]
    grids[1].manifest["model"] = TUNED
    for given in (grids, grids[::-1]):
        found = compare([], given, [a_training(tmp_path / "training")])
        name = "SFT (lora, aya, de+sw)"
        assert {each.condition: (each.kind, each.score, each.training.flops) for each in found.groups[0].results} == {
            "vanilla": ("vanilla", 0.4, 0),
            name: ("sft", 0.9, 6e10),
            "upper bound (ffn)": ("upper_bound", 1.0, 0),
            f"{name} + upper bound (ffn)": ("upper_bound", 1.0, 6e10),
        }
        assert result(found, condition=name).difference == pytest.approx(0.5)


def test_selections_by_one_strategy_are_told_apart_by_their_grids_or_have_no_average(tmp_path: Path) -> None:
    runs, grids = [], []
    for pair, order in (("en-de", ("ffn", "attn")), ("en-sw", ("attn", "ffn"))):
        runs.append(a_run(tmp_path, "vanilla", pair, red=VANILLA))
        for place, each in enumerate(order):
            facts = {"grid_sha256": f"{pair}{each}", "components": [each], "pairs": "all"}
            folder = tmp_path / f"{pair}-{each}"
            folder.mkdir()
            (folder / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")
            grids.append(folder)
            described = {"grid_sha256": facts["grid_sha256"], "folder": str(folder), "intervention": {}}
            selection = {"transplant": {"control": "none"}, "selection": {"strategy": "overall", "grids": [described]}}
            red = BETTER if each == "ffn" else VANILLA
            runs.append(a_run(tmp_path, "overall", pair, name=f"-{place}", red=red, args=selection))
    found = compare(runs)
    assert {each.score for each in results(found, condition="overall")} == {0.9}
    assert {each.score for each in results(found, condition="overall #2")} == {0.4}
    for folder in grids:
        (folder / "manifest.json").unlink()
    found = compare(runs)
    assert not [each for each in results(found, kind="strategy") if each.pooled]
    assert "No average of overall, overall #2: which of one language pair" in found.groups[0].notes[-1]


def test_a_condition_that_some_languages_lack_says_so(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, "vanilla", pair, red=VANILLA) for pair in ("en-de", "en-sw", "en-tr")]
    runs += [a_run(tmp_path, "ffn 3>1", pair, red=BETTER) for pair in ("en-de", "en-sw")]
    found = result(compare(runs), condition="ffn 3>1", pooled="micro")
    assert (found.pairs, found.note) == (2, "over 2 of 3 language pairs, without en-tr")


# --- What may be compared --------------------------------------------------------------------------------------------


def changed(run: Run, **facts: Any) -> Run:
    [task] = run.manifest["tasks"].values()
    task |= facts
    return run


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"version": 2.0}, r"version of red_sw: 2\.0 in .*ffn 3>1-en-sw, 1\.0 in .*vanilla-en-sw"),
        ({"documents": 4, "keys_sha256": "4"}, r"documents of red_sw: 4 in .*ffn 3>1-en-sw, 10 in .*vanilla-en-sw"),
        ({"docs_sha256": {"target": "b" * 64}}, r"documents of red_sw: 10 \(bbbbbbbb\) in .*ffn 3>1-en-sw, others"),
        (
            {"prompts_sha256": {"target": "c" * 64}},
            r"prompts of red_sw: cccccccc in .*ffn 3>1-en-sw, aaaaaaaa aaaaaaaa in ",
        ),
        ({"questions_sha256": "d" * 64}, r"prompts of red_sw: "),
    ],
)
def test_other_versions_documents_or_prompts_are_refused(tmp_path: Path, facts: dict[str, Any], said: str) -> None:
    same = {
        "version": 1.0, "docs_sha256": {"target": "a" * 64}, "prompts_sha256": {"target": "a" * 64, "source": "a" * 64},
        "questions_sha256": "a" * 64,
    }  # fmt: skip
    runs = [changed(a_run(tmp_path, red=VANILLA), **same), changed(a_run(tmp_path, "ffn 3>1", red=BETTER), **same)]
    compare(runs)
    changed(runs[1], **facts)
    with pytest.raises(XTransplantError, match=said):
        compare(runs)
    # Another task, half or model is another comparison.
    for other in (
        {"task_name": "shape"},
        {"split": "sample"},
        {"model": BASE | {"files": {"model.safetensors": "zz"}}},
    ):
        apart = Run(runs[1].folder, runs[1].manifest | other, runs[1].results)
        assert len(compare([runs[0], apart]).groups) == 2


def some_grid(place: Path, documents: int, pair: str = "en-sw", **changes: Any) -> Run:
    """On the first documents: vanilla as VANILLA, and one of two cells solves the others."""
    cells = [Cell(Component.ffn, 0, 0), Cell(Component.ffn, 1, 0)]
    red = VANILLA[:documents]
    made = hand_grid([[0, 1 - score] for score in red], red, cells, 2, tasks=["red_{lang}"], split="unseen", **changes)
    return a_grid(place, made, pair=pair)


def test_a_grid_may_have_some_of_the_documents(tmp_path: Path) -> None:
    runs = []
    for pair in ("en-de", "en-sw"):
        runs += [a_run(tmp_path, "vanilla", pair, red=VANILLA), a_run(tmp_path, "ffn 3>1", pair, red=BETTER)]
    alone = compare(runs)
    found = compare(runs, [some_grid(tmp_path, 5, "en-de"), some_grid(tmp_path, 8)])
    bounds = {each.pair or each.pooled: each for each in results(found, kind="upper_bound")}
    # Vanilla has 4 of the first 5, and of the first 8: the cells have the others.
    assert {place: (each.documents, each.score, each.vanilla) for place, each in bounds.items()} == {
        "en-de": (5, 1 / 5, 4 / 5),
        "en-sw": (8, 4 / 8, 4 / 8),
        "micro": (13, pytest.approx(5 / 13), pytest.approx(8 / 13)),
        "macro": (13, pytest.approx((1 / 5 + 4 / 8) / 2), pytest.approx((4 / 5 + 4 / 8) / 2)),
    }
    assert (bounds["en-de"].wins, bounds["en-de"].losses) == (1, 4)
    assert bounds["en-de"].difference == pytest.approx(-3 / 5)
    assert bounds["en-de"].note.startswith("on 5 of 10 documents; the best of 2 cells")
    assert bounds["micro"].note == "on 13 of 20 documents"
    assert [each for each in found.groups[0].results if each.kind != "upper_bound"] == alone.groups[0].results
    assert found.groups[0].notes == []


def test_the_plain_row_of_a_fine_tuned_models_grid_is_on_its_own_documents(tmp_path: Path) -> None:
    pairs = ("en-de", "en-sw")
    runs = [
        a_run(tmp_path, name, pair, red=red) for pair in pairs for name, red in (("vanilla", VANILLA), ("b", BETTER))
    ]
    grids = [some_grid(tmp_path, 6, pair) for pair in pairs]
    for each in grids:
        each.manifest["model"] = TUNED
    found = compare(runs, grids, [a_training(tmp_path / "training")])
    tuned = result(found, kind="sft", pair="en-sw")
    assert (tuned.documents, tuned.score, tuned.vanilla, tuned.difference) == (6, 4 / 6, 4 / 6, 0)
    assert tuned.p == 1 and tuned.note == "on 6 of 10 documents"
    pooled = result(found, kind="sft", pooled="micro")
    assert (pooled.documents, pooled.difference, pooled.p) == (12, 0, 1)
    assert [each for each in found.groups[0].results if each.condition == "b"] == [
        each for each in compare(runs).groups[0].results if each.condition == "b"
    ]
    # Nor is what has more documents compared with a grid's vanilla.
    grids[1].manifest["model"] = BASE
    found = compare([runs[3]], grids[1:])
    assert (result(found, condition="b").difference, result(found, kind="vanilla").documents) == (None, 6)
    assert "Vanilla of en-sw is a grid's, on some of the documents" in found.groups[0].notes[0]


def test_as_many_documents_are_not_the_same_documents(tmp_path: Path) -> None:
    """A grid of one half of a run's documents, and a fine-tuned model's of the other half."""
    grids = [some_grid(tmp_path, 5, settings={"task": half}) for half in (1, 2)]
    path = grids[1].folder / "grid.npz"
    made = Grid.load(path)
    replace(made, documents=[f"{each[:-1]}{number}" for number, each in enumerate(made.documents, 5)]).save(path)
    rows = "".join(json.dumps(a_sample(row, "acc", 0)) + "\n" for row in range(5, 10))
    (grids[1].folder / "samples_red_sw.jsonl").write_text(rows, encoding="utf-8")
    grids[1].manifest["model"] = TUNED
    changed(grids[1], keys_sha256="others")
    found = compare([a_run(tmp_path, "ffn 3>1", red=BETTER)], grids, [a_training(tmp_path / "training")])
    assert found.groups[0].left_out == []
    assert [(each.documents, each.vanilla, each.difference) for each in results(found, kind="sft")] == [(5, None, None)]
    assert {each.vanilla for each in results(found, kind="upper_bound")} == {0.8, None}


def test_a_grid_takes_nothing_from_the_average_of_others(tmp_path: Path) -> None:
    """Its vanilla row of some documents makes no baseline for what was scored on more."""
    pairs = ("en-de", "en-sw", "en-tr")
    runs = [a_run(tmp_path, "b", pair, red=BETTER) for pair in pairs]
    runs += [a_run(tmp_path, "vanilla", pair, red=VANILLA) for pair in pairs[:2]]
    found = compare(runs, [some_grid(tmp_path, 6, "en-tr")])
    alone = compare(runs)
    for average in ("micro", "macro"):
        one = result(found, condition="b", pooled=average)
        assert one == result(alone, condition="b", pooled=average)
        assert (one.pairs, one.documents, one.note) == (2, 20, "over 2 of 3 language pairs, without en-tr")


@pytest.mark.parametrize(
    ("facts", "sample", "said"),
    [
        ({"version": 2.0}, {}, r"version of red_sw: 2\.0 in .*grid-.*, None in .*vanilla-en-sw"),
        (
            {},
            {"key": "k77"},
            r"documents of red_sw: 5, 1 of which the other lacks \(e\.g\. k77\), in .*, 10 in .*vanilla",
        ),
        ({}, {"doc_hash": "e" * 64}, r"documents of red_sw: k0 \(eeeeeeee\) in .*, another \(00000000\) in .*vanilla"),
        (
            {},
            {"arguments": [["0!", " yes"]], "prompt_hash": "e" * 64},
            r"prompts of red_sw: eeeeeeee in .*, 00000000 in ",
        ),
        ({}, {"arguments": [["0?", " no"]]}, r"prompts of red_sw: "),
        ({}, {"source_prompts": ["other"]}, r"prompts of red_sw: "),
    ],
)
def test_a_grid_that_cannot_be_compared_is_left_out(
    tmp_path: Path, facts: dict[str, Any], sample: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [a_run(tmp_path, red=VANILLA), a_run(tmp_path, "ffn 3>1", red=BETTER)]
    made = some_grid(tmp_path, 5)
    path = made.folder / "samples_red_sw.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines[0] |= sample
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    [group] = compare(runs, [changed(made, **facts)]).groups
    assert group.results == compare(runs).groups[0].results
    assert group.notes == group.left_out and len(group.notes) == 1
    assert re.match(f"A grid is left out: {said}", group.notes[0])
    assert [record.getMessage() for record in caplog.records] == group.notes


def test_without_runs_of_evaluate_the_grid_of_the_most_documents_says_what_fits(tmp_path: Path) -> None:
    grids = [some_grid(tmp_path, documents, settings={"task": documents}) for documents in (4, 7)]
    found = compare([], grids)
    assert {each.documents for each in results(found, kind="vanilla")} == {7}
    assert {(each.documents, each.vanilla) for each in results(found, kind="upper_bound")} == {(7, 4 / 7), (4, 1.0)}
    [group] = compare([], [changed(grids[0], version=2.0), grids[1]]).groups
    assert {each.documents for each in group.results} == {7} and len(group.left_out) == 1


def test_the_settings_that_make_prompts_differ_are_named(tmp_path: Path) -> None:
    args = {"task": {"tasks": ["red_{lang}"], "languages": {}, "num_fewshot": 2}}
    runs = [a_run(tmp_path, red=VANILLA), a_run(tmp_path, "ffn 3>1", red=BETTER, args=args)]
    for run, digest in zip(runs, "ab", strict=True):
        changed(run, prompts_sha256={"target": digest * 64, "source": digest * 64})
    with pytest.raises(XTransplantError, match=r"prompts of red_sw: task\.num_fewshot=2 in .*, task\.num_fewshot=null"):
        compare(runs)


def test_sources_may_differ_where_they_are_the_condition_and_both_prompts_in_one_too(tmp_path: Path) -> None:
    control = {"transplant": {"layers": [3, 1], "control": "random_document"}}
    runs = [a_run(tmp_path, red=VANILLA), a_run(tmp_path, "ffn 3>1", red=BETTER, args=control)]
    runs += [a_run(tmp_path, "both", red=BETTER, args={"transplant": None, "prompt": "both"})]
    for run, source, target in zip(runs, "abc", "aab", strict=True):
        changed(run, prompts_sha256={"target": target * 64, "source": source * 64})
    assert len(compare(runs).groups) == 1


def test_a_control_hides_no_other_sources_and_asks_the_same(tmp_path: Path) -> None:
    """With the documents of another as its sources it stands beside the rest, which are held against each other."""
    control = {"transplant": {"layers": [3, 1], "control": "random_document"}}
    runs = [a_run(tmp_path, "ffn 3>1 random_document", red=VANILLA, args=control)]
    runs += [a_run(tmp_path, "ffn 2>1", red=VANILLA), a_run(tmp_path, "ffn 3>1", red=BETTER)]
    for run, source in zip(runs, "abb", strict=True):
        changed(run, docs_sha256={"target": "a" * 64, "source": source * 64}, questions_sha256="a" * 64)
    assert len(compare(runs).groups) == len(overview(runs).blocks[0].rows) == 1
    changed(runs[2], docs_sha256={"target": "a" * 64, "source": "c" * 64})
    with pytest.raises(XTransplantError, match=r"documents of red_sw: 10 .*3>1-en-sw, others .*2>1-en-sw"):
        compare(runs)
    changed(runs[0], docs_sha256={"target": "d" * 64, "source": "a" * 64})
    with pytest.raises(XTransplantError, match=r"documents of red_sw: 10 .*random_document-en-sw, others"):
        compare(runs[:2])
    assert len(overview(runs[:2]).blocks[0].rows) == 2


def test_beside_both_prompts_in_one_others_are_held_against_each_other(tmp_path: Path) -> None:
    both = {"transplant": None, "prompt": "both"}
    runs = [a_run(tmp_path, "vanilla (both prompts)", red=VANILLA, args=both)]
    runs += [a_run(tmp_path, "ffn 2>1", red=VANILLA), a_run(tmp_path, "ffn 3>1", red=BETTER)]
    for run, digest in zip(runs, "abc", strict=True):
        changed(run, prompts_sha256={"target": digest * 64})
    with pytest.raises(XTransplantError, match=r"prompts of red_sw: cccccccc in .*3>1-en-sw, bbbbbbbb in .*2>1-en-sw"):
        compare(runs)


def test_both_prompts_in_one_with_other_examples_are_refused(tmp_path: Path) -> None:
    """Their prompts differ by nature, their settings do not."""
    task = {"tasks": ["red_{lang}"], "languages": {}}
    both = {"transplant": None, "prompt": "both", "task": task | {"num_fewshot": 2}}
    runs = [a_run(tmp_path, red=VANILLA), a_run(tmp_path, "vanilla (both prompts)", red=BETTER, args=both)]
    with pytest.raises(XTransplantError, match=r"prompts of red_sw: task\.num_fewshot=2 in .*, task\.num_fewshot=null"):
        compare(runs)


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    coarse = BASE | {"dtype": "bfloat16"}
    runs = [a_run(tmp_path, red=VANILLA), a_run(tmp_path, name="-b", red=BETTER, facts={"model": coarse})]
    assert {group.model for group in compare(runs).groups} == {"tiny (float32)", "tiny (bfloat16)"}
    other = BASE | {"files": {"model.safetensors": "zz"}}
    runs[1].manifest["model"] = other
    assert [group.model for group in compare(runs).groups] == ["tiny #1", "tiny #2"]


def test_without_vanilla_there_are_scores_only(tmp_path: Path) -> None:
    found = compare([a_run(tmp_path, "ffn 3>1", red=BETTER)])
    one = result(found, condition="ffn 3>1")
    assert (one.score, one.against, one.difference, one.could_be_chance) == (0.9, None, None, None)
    [note] = found.groups[0].notes
    assert note.startswith("No vanilla run of the base model is among the runs")
    text = tables.comparison(found)
    assert note.split(". ")[0] in " ".join(text.split()) and "p:" not in text and "[95" not in text
    assert "en-sw  ffn 3>1    10    0.900\n" in text


def test_records_are_long_and_have_one_form(tmp_path: Path) -> None:
    runs, grids, trainings = all_kinds(tmp_path)
    lines = compare(runs, grids, trainings).records()
    assert len({tuple(line) for line in lines}) == 1
    assert set(lines[0]) >= {
        *("model", "task", "split", "metric", "kind", "condition", "pair", "documents", "score", "vanilla"),
        *("difference", "low", "high", "wins", "losses", "p", "p_holm", "effect", "minimum_detectable"),
        *("could_be_chance", "seconds", "tokens", "flops", "training_seconds", "training_tokens", "training_flops"),
        "folder",
    }
    assert json.loads(json.dumps(lines)) == lines  # plain values


@pytest.mark.slow
def test_two_hundred_runs_of_500_documents_take_seconds(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    runs = []
    for model, pair in itertools.product(range(5), ("de", "sw", "tr", "zh", "fr", "es", "it", "el")):
        facts = {"model": BASE | {"files": {"model.safetensors": str(model)}}}
        for condition in ("vanilla", "ffn 1>2", "ffn 3>1", "attn 2>2", "ffn 4>4"):
            red = (generator.random(500) < 0.5).astype(int).tolist()
            runs.append(a_run(tmp_path / str(model), condition, f"en-{pair}", red=red, facts=facts))
    started = time.perf_counter()
    assert len(compare(runs).records()) == 250
    assert time.perf_counter() - started < 20
