"""Grids from the command line to a selection and its evaluation: every cell is what `evaluate` gives for that pair."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.equivalence.tiny import save_checkpoint
from tests.integration.local_tasks import write_tasks
from xtransplant import answer_language, grid_jobs, jobs, loading, record, sweep, sweep_lm
from xtransplant.compose import compose
from xtransplant.config import AnalyzeConfig, EvaluateConfig, GridConfig, SelectConfig, StrategiesConfig
from xtransplant.grid import Grid
from xtransplant.record import Run, find_runs
from xtransplant.types import Cell, Component, XTransplantError

PAIRS = [[3, 0], [1, 2], [2, 2], [0, 3]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    save_checkpoint("gemma3_text", folder / "model")
    write_tasks(folder / "tasks")
    return folder


def overrides(place: Path, kind: str, **changes: Any) -> list[str]:
    given = {
        "model": "hf", "model.path": place / "model", "model.name": "tiny", "task": "custom", "task.name": "colour",
        "task.tasks": f"[\"colour_{kind}_{{lang}}\"]", "task.key": "id", "task.gold": "label",
        "task.include_path": f"[{place / 'tasks'}]", "language_pair": "en-sw", "split": "all",
        "output_dir": place / "outputs",
    }  # fmt: skip
    return [f"{key}={value}" for key, value in (given | changes).items()]


def run_grid(place: Path, kind: str, **changes: Any) -> tuple[Run, Grid]:
    config = compose("grid", overrides(place, kind, **changes))
    assert isinstance(config, GridConfig)
    grid_jobs.grid(config)
    found = [
        run for run in find_runs([str(config.output_dir)], "grid") if run.manifest["config_hash"] == _hash_of(config)
    ]
    assert len(found) == 1
    return found[0], Grid.load(found[0].folder / grid_jobs.GRID)


def _hash_of(config: GridConfig) -> str:
    from xtransplant.config import config_hash

    return config_hash(config, 4)


def run_evaluate(place: Path, kind: str, **changes: Any) -> Run:
    config = compose("evaluate", overrides(place, kind, **changes))
    assert isinstance(config, EvaluateConfig)
    before = {run.folder for run in _evaluated(place)}
    jobs.evaluate(config)
    [run] = [run for run in _evaluated(place) if run.folder not in before]
    return run


def _evaluated(place: Path) -> list[Run]:
    try:
        return find_runs([str(place / "outputs")])
    except XTransplantError:
        return []


def samples(run: Run) -> list[dict[str, Any]]:
    [path] = run.folder.glob("samples_*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", ["choice", "word", "contexts", "generate", "sampled"])
def test_a_cell_is_what_evaluate_gives(place: Path, kind: str) -> None:
    made, grid = run_grid(place, kind, **{"transplant.component": "[ffn,attn]"})
    assert len(grid.cells) == 2 * 16
    # Texts that are drawn cannot be compared with single ones one by one.
    assert ("sweep_against_single_pairs" in made.manifest["checks"]) == (kind != "sampled")
    assert made.manifest["checks"]["padding_invariance"] < 1e-3
    for component in ("ffn", "attn"):
        for source, target in PAIRS[:2]:
            run = run_evaluate(
                place, kind, **{"transplant.component": component, "transplant.layers": f"[{source},{target}]"}
            )
            [column] = grid.columns([Cell(Component(component), source, target)])
            for row in samples(run):
                d = grid.documents.index(f"colour_{kind}_{{lang}}/{row['key']}")
                assert grid.scores[0, d, column] == row[grid.metric]
                if kind in ("generate", "sampled"):
                    assert grid.texts is not None and grid.text is not None
                    assert grid.texts[grid.text[d, column]] == row["resps"][0][0]
                else:
                    assert grid.logprob is not None
                    expected = [float(each[0][0]) for each in row["resps"]]
                    np.testing.assert_allclose(grid.logprob[d, column, : len(expected)], expected, atol=1e-3)
            shutil.rmtree(run.folder)


def test_the_language_of_every_cell_comes_along_and_is_not_the_main_metric(place: Path) -> None:
    """A tiny model's texts are no language; what is graded in a cell is what one of its texts gives."""
    in_target = answer_language.judge_of("en", "sw")
    assert in_target is not None
    run, grid = run_grid(place, "generate", **{"transplant.component": "[ffn,attn]"})
    assert grid.metric == "exact_match" and grid.texts is not None and grid.text is not None
    told = [in_target(text) for text in grid.texts]
    judged = np.array([float(each is not None) for each in told])
    right = np.array([np.nan if each is None else float(each) for each in told])
    rows = dict(zip(grid.meta["metrics"], grid.scores, strict=True))
    np.testing.assert_array_equal(rows[answer_language.JUDGED], judged[grid.text])
    if answer_language.CONSISTENCY in rows:
        np.testing.assert_array_equal(rows[answer_language.CONSISTENCY], right[grid.text])
    assert (answer_language.CONSISTENCY in rows) == (not np.isnan(right).all())
    assert all(row[answer_language.JUDGED] == judged[grid.texts.index(row["resps"][0][0])] for row in samples(run))


def test_vanilla_comes_along_in_the_harness_schema(place: Path) -> None:
    run, grid = run_grid(place, "choice")
    vanilla = run_evaluate(place, "choice")
    ours, theirs = samples(run), samples(vanilla)
    assert [row["acc"] for row in ours] == [row["acc"] for row in theirs] == grid.vanilla[0].tolist()
    assert run.results["results"] == vanilla.results["results"]
    shutil.rmtree(vanilla.folder)


def test_choice_scores_say_which_answer_is_right(place: Path) -> None:
    run, grid = run_grid(place, "choice")
    assert grid.gold == [row["doc"]["label"] for row in samples(run)]


def test_a_killed_grid_resumes_and_the_same_one_is_found(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"output_dir": tmp_path / "out"}
    undisturbed, expected = run_grid(place, "choice", output_dir=tmp_path / "undisturbed")
    add = sweep_lm.Shards.add
    batches: list[int] = []

    def killed_at_second(self: sweep_lm.Shards, answers: dict[str, Any], spent: Any) -> None:
        if len(batches) == 1:
            raise KeyboardInterrupt
        batches.append(len(answers))
        add(self, answers, spent)

    monkeypatch.setitem(sweep._ENOUGH_TOKENS, "cpu", 100)
    monkeypatch.setattr(sweep_lm.Shards, "add", killed_at_second)
    with pytest.raises(KeyboardInterrupt):
        run_grid(place, "choice", **changes)
    again: list[int] = []

    def counted(self: sweep_lm.Shards, answers: dict[str, Any], spent: Any) -> None:
        again.append(len(answers))
        add(self, answers, spent)

    monkeypatch.setattr(sweep_lm.Shards, "add", counted)
    run, resumed = run_grid(place, "choice", **changes)
    assert sum(again) == len(expected.documents) - batches[0]
    np.testing.assert_array_equal(resumed.scores, expected.scores)
    assert resumed.logprob is not None and expected.logprob is not None
    np.testing.assert_allclose(resumed.logprob, expected.logprob, atol=1e-4)
    assert not (run.folder / "responses").exists()
    # What the killed one had computed is part of the cost.
    for name in ("tokens", "flops"):
        assert run.manifest["cost"][name] == undisturbed.manifest["cost"][name] > 0
    # Asked a third time, nothing is computed.
    again.clear()
    monkeypatch.setattr(loading, "load", lambda *args: pytest.fail("loaded again"))
    run_grid(place, "choice", **changes)
    assert not again


def test_to_overwrite_drops_a_finished_run_and_goes_on_with_an_interrupted_one(place: Path, tmp_path: Path) -> None:
    changes = {"output_dir": tmp_path / "out", "overwrite": True}
    run, _ = run_grid(place, "choice", **changes)
    for finished in (True, False):
        sweep_lm.Shards(run.folder / "responses").add({"some question": {"logprob": np.zeros(1)}}, np.zeros(3))
        if not finished:
            (run.folder / "manifest.json").unlink()
        again, _ = run_grid(place, "choice", **changes)
        assert again.manifest["prompts_answered_before"] == (0 if finished else 1)


def test_answers_of_other_weights_are_not_taken_for_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's hash knows the model's path only; a checkpoint may change under it while a grid is interrupted."""
    save_checkpoint("llama", tmp_path / "model")
    write_tasks(tmp_path / "tasks")
    add = sweep_lm.Shards.add
    kept: list[int] = []

    def killed_at_second(self: sweep_lm.Shards, answers: dict[str, Any], spent: Any) -> None:
        if kept:
            raise KeyboardInterrupt
        kept.append(len(answers))
        add(self, answers, spent)

    monkeypatch.setitem(sweep._ENOUGH_TOKENS, "cpu", 100)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(sweep_lm.Shards, "add", killed_at_second)
        run_grid(tmp_path, "choice")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    changed = {name: tensor * 1.5 for name, tensor in weights.items()}
    save_file(changed, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    _, resumed = run_grid(tmp_path, "choice")
    _, fresh = run_grid(tmp_path, "choice", output_dir=tmp_path / "fresh")
    assert resumed.logprob is not None and fresh.logprob is not None
    np.testing.assert_allclose(resumed.logprob, fresh.logprob, atol=1e-4)


def test_damaged_parts_are_computed_anew(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = sweep_lm.Shards(tmp_path)
    shards.add({"a": {"logprob": np.ones((2, 3))}}, np.zeros(3))
    shards.add({"b": {"logprob": np.zeros((2, 3))}}, np.zeros(3))
    [first, second] = sorted(tmp_path.glob("*.npz"))
    damaged = bytearray(first.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    first.write_bytes(damaged)
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / ".left.123").write_bytes(b"by a kill")
    with np.load(second) as whole:
        [name] = {each.partition(".")[0] for each in whole.files}
    again = sweep_lm.Shards(tmp_path)
    assert again.get(name) is not None
    assert len(again) == 1
    assert "empty.npz cannot be read" in caplog.text


def test_nothing_is_lost_before_the_manifest_is_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(record, "close_run", full)
        run_grid(place, "choice", output_dir=tmp_path)
    monkeypatch.setattr(sweep, "score_cells", lambda *given: pytest.fail("computed again"))
    run, grid = run_grid(place, "choice", output_dir=tmp_path)
    assert run.manifest["prompts_answered_before"] == len(grid.documents)
    assert not (run.folder / "responses").exists()


@pytest.mark.parametrize("kind", ["choice", "generate"])
def test_a_broken_sweep_is_refused(kind: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score_cells, generate_cells = sweep.score_cells, sweep.generate_cells

    def shifted(*given: Any) -> Any:
        return [scores._replace(logprob=scores.logprob + 1) for scores in score_cells(*given)]

    def turned(*given: Any) -> Any:
        return [[[token ^ 1 for token in text] for text in texts] for texts in generate_cells(*given)]

    monkeypatch.setattr(sweep, "score_cells", shifted)
    monkeypatch.setattr(sweep, "generate_cells", turned)
    with pytest.raises(XTransplantError, match="The sweep_against_single_pairs check failed"):
        run_grid(place, kind, output_dir=tmp_path)


def test_log_probabilities_that_are_no_numbers_are_an_error(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_cells = sweep.score_cells

    def overflowing(*given: Any) -> Any:
        found = score_cells(*given)
        found[0].logprob[4, 1] = np.nan
        return found

    monkeypatch.setattr(sweep, "score_cells", overflowing)
    with pytest.raises(XTransplantError, match=r"1 of 17 cells, e\.g\. ffn 0>3, give .*bfloat16"):
        run_grid(place, "choice", output_dir=tmp_path)


def test_source_vectors_are_kept_and_used_again(place: Path, tmp_path: Path) -> None:
    first, _ = run_grid(place, "choice", output_dir=tmp_path / "out")
    assert first.manifest["sources_computed"] == len(samples(first))
    second, _ = run_grid(place, "choice", output_dir=tmp_path / "out", **{"transplant.component": "attn"})
    assert second.manifest["sources_computed"] == 0
    [file] = (tmp_path / "out" / "captures").rglob("*.safetensors")
    file.write_bytes(b"damaged")
    third, _ = run_grid(place, "choice", output_dir=tmp_path / "out", overwrite="true")
    assert third.manifest["sources_computed"] == len(samples(first))


def test_a_budget_looks_at_few_cells_on_all_documents(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run, grid = run_grid(place, "choice", **{"grid.budget": "0.5"})
    # One estimate, of all rounds.
    [estimate] = [record.getMessage() for record in caplog.records if "Estimate" in record.getMessage()]
    assert estimate.startswith(f"Estimate: {len(grid.documents)} prompts in 16 cells at first, 4 at last, ")
    full = run_grid(place, "choice")[1]
    looked_at = ~np.isnan(grid.scores[0])
    assert 0 < looked_at.mean() <= 0.5
    assert grid.seen.sum() >= 1 and (looked_at.sum(0) > 0).all()
    np.testing.assert_array_equal(grid.scores[0][looked_at], full.scores[0][looked_at])
    assert len(run.manifest["left_out"]) == 3
    with pytest.raises(XTransplantError, match=r"grid\.budget=0\.01: too little"):
        run_grid(place, "choice", **{"grid.budget": "0.01"})


def test_controls(place: Path) -> None:
    _, real = run_grid(place, "choice")
    _, own = run_grid(place, "choice", **{"transplant.control": "self", "grid.pairs": "diagonal"})
    assert own.logprob is not None and own.vanilla_logprob is not None
    np.testing.assert_allclose(own.logprob, own.vanilla_logprob[:, None].repeat(4, 1), atol=1e-3)
    for control in ("random_document", "noise"):
        _, grid = run_grid(place, "choice", **{"transplant.control": control})
        assert grid.logprob is not None and real.logprob is not None
        assert np.abs(grid.logprob - real.logprob).max() > 0.01
        layers = {"transplant.layers": "[3,0]", "transplant.control": control, "limit": "4"}
        run = run_evaluate(place, "choice", **layers)
        for row in samples(run):
            d = grid.documents.index(f"colour_choice_{{lang}}/{row['key']}")
            [column] = grid.columns([Cell(Component.ffn, 3, 0)])
            np.testing.assert_allclose(grid.logprob[d, column], [float(each[0][0]) for each in row["resps"]], atol=1e-3)
        shutil.rmtree(run.folder)


def select(place: Path, folder: Path, strategy: str, **changes: Any) -> Path:
    given = {"grid": folder, "strategy": strategy, "output_dir": place / "outputs"} | changes
    config = compose("select", [f"{key}={value}" for key, value in given.items()])
    assert isinstance(config, SelectConfig)
    before = set((place / "outputs").glob("select/*/selection.json"))
    grid_jobs.select(config)
    [made] = set((place / "outputs").glob("select/*/selection.json")) - before
    return made


@pytest.mark.parametrize("strategy", ["overall", "vote", "mean_logprob", "margin", "router"])
def test_a_selection_is_applied_to_unseen_documents(place: Path, strategy: str) -> None:
    # Of both components, so that a rule's cells, which are in the order of their scores, mix them.
    both = {"transplant.component": "[ffn,attn]"}
    run, _ = run_grid(place, "choice", split="sample", **both)
    _, unseen = run_grid(place, "choice", split="unseen", **both)
    path = select(place, run.folder, strategy, candidates=9)
    evaluated = run_evaluate(place, "choice", split="unseen", selection=path)
    from xtransplant import selection, strategies

    [chosen] = selection.read(str(path))
    offline = strategies.evaluate_selection(chosen, unseen)
    online = {f"colour_choice_{{lang}}/{row['key']}": row["acc"] for row in samples(evaluated)}
    assert [online[name] for name in unseen.documents] == offline.tolist()
    assert evaluated.manifest["condition"] == strategy
    for split in ("sample", "all"):
        with pytest.raises(XTransplantError, match=r"documents were selected on, e\.g\. colour_choice"):
            run_evaluate(place, "choice", split=split, selection=path)


def test_a_selected_document_is_known_under_any_name(place: Path) -> None:
    """Of a task that asks the same otherwise, or of the same task with its language spelled out."""
    run, _ = run_grid(place, "choice", split="sample")
    path = select(place, run.folder, "target_first")
    for kind, changes in (("generate", {}), ("choice", {"task.tasks": "[colour_choice_sw]"})):
        spelled = {"task.source_tasks": "[colour_choice_en]"} if changes else {}
        with pytest.raises(XTransplantError, match=r"documents were selected on, e\.g\. colour_"):
            run_evaluate(place, kind, split="sample", selection=path, **changes, **spelled)
    assert run_evaluate(place, "generate", split="unseen", selection=path).results["results"]


def test_a_selection_for_another_pair_is_refused(place: Path) -> None:
    run, _ = run_grid(place, "choice", split="sample")
    path = select(place, run.folder, "source_last")
    with pytest.raises(XTransplantError, match=r"holds no selection for tiny and sw-en\. It holds: tiny colour en-sw"):
        run_evaluate(place, "choice", split="unseen", selection=path, language_pair="sw-en")


def test_tables_and_pictures(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample, _ = run_grid(place, "choice", split="sample")
    unseen, _ = run_grid(place, "choice", split="unseen")
    control, _ = run_grid(place, "choice", split="unseen", **{"transplant.control": "noise"})
    output = f"output_dir={place / 'outputs'}"
    capsys.readouterr()
    config = compose(
        "strategies",
        [f"grid={sample.folder}", f"unseen={unseen.folder}", f"controls=[{control.folder}]", output],
    )
    assert isinstance(config, StrategiesConfig)
    grid_jobs.strategies(config)
    text = capsys.readouterr().out
    for name in ("vanilla", "source_last", "target_first", "overall", "router", "upper bound", "noise"):
        assert name in text
    config = compose("analyze", [f"grid=[{sample.folder},{unseen.folder}]", output])
    assert isinstance(config, AnalyzeConfig)
    grid_jobs.analyze(config)
    assert "max-T p" in capsys.readouterr().out
    for name in ("heatmap.svg", "curves.svg", "strategies.svg", "heatmap_logprob.svg"):
        [made] = (place / "outputs").rglob(name)
        assert made.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.slow
def test_sigkill_loses_the_batch_in_flight_at_most(tmp_path: Path) -> None:
    arguments = [
        *("grid", "task=cldr_language", "language_pair=en-sw", "limit=4", "grid.pairs=source_last"),
        f"output_dir={tmp_path}",
    ]
    command = [sys.executable, "-m", "xtransplant.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("grid/*/responses/[!.]*.npz")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [folder] = tmp_path.glob("grid/[!.]*")
    kept = len(sweep_lm.Shards(folder / "responses"))
    assert kept >= 1 and not (folder / "manifest.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{kept} prompts were answered before the interruption" in done.stderr
    [run] = find_runs([str(tmp_path)], "grid")
    assert run.manifest["counts"]["prompts"] == 4 - kept
    assert run.manifest["prompts_answered_before"] == kept
    assert run.manifest["sources_computed"] == 0
    grid = Grid.load(run.folder / grid_jobs.GRID)
    assert len(grid.documents) == 4 and bool(grid.seen.all())


INTERVENTIONS: dict[str, dict[str, str]] = {
    "add": {"mode": "add", "strength": "0.5"},
    "interpolate": {"mode": "interpolate", "strength": "0.3", "match_norm": "true"},
    "last_2": {"positions": "2"},
    "every_step": {"scope": "every_step"},
    # The target language too: the only other one that there is.
    "mean": {"mean_over": "[sw]"},
    "zero": {"control": "zero"},
}


@pytest.mark.parametrize("kind", ["choice", "generate"])
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_a_cell_is_what_evaluate_gives_however_it_is_written(place: Path, name: str, kind: str) -> None:
    how = {f"transplant.{key}": value for key, value in INTERVENTIONS[name].items()}
    _, paper = run_grid(place, kind, **{"grid.pairs": "[[3,0],[1,2]]"})
    _, grid = run_grid(place, kind, **{"grid.pairs": "[[3,0],[1,2]]"}, **how)
    run = run_evaluate(place, kind, **{"transplant.layers": "[3,0]"}, **how)
    assert run.manifest["counts"]["transplants"] == run.manifest["counts"]["prompts"]
    assert grid.meta["intervention"] != paper.meta["intervention"] or name == "zero"
    [column] = grid.columns([Cell(Component.ffn, 3, 0)])
    for row in samples(run):
        d = grid.documents.index(f"colour_{kind}_{{lang}}/{row['key']}")
        if grid.logprob is not None and paper.logprob is not None:
            np.testing.assert_allclose(grid.logprob[d, column], [float(each[0][0]) for each in row["resps"]], atol=1e-3)
            assert np.abs(grid.logprob[d] - paper.logprob[d]).max() > 1e-3
        else:
            assert grid.texts is not None and grid.text is not None
            assert grid.texts[grid.text[d, column]] == row["resps"][0][0]
    shutil.rmtree(run.folder)


def test_a_selection_says_how_vectors_are_written(place: Path) -> None:
    how = {"transplant.mode": "add", "transplant.strength": "0.5"}
    sample, _ = run_grid(place, "choice", split="sample", **how)
    _, unseen = run_grid(place, "choice", split="unseen", **how)
    path = select(place, sample.folder, "overall")
    run = run_evaluate(place, "choice", split="unseen", selection=path)
    from xtransplant import selection

    [chosen] = selection.read(str(path))
    assert unseen.logprob is not None
    [column] = unseen.columns(chosen.cells)
    for row in samples(run):
        d = unseen.documents.index(f"colour_choice_{{lang}}/{row['key']}")
        np.testing.assert_allclose(unseen.logprob[d, column], [float(each[0][0]) for each in row["resps"]], atol=1e-3)
    shutil.rmtree(run.folder)
    with pytest.raises(XTransplantError, match="how vectors are written is the selection's"):
        run_evaluate(place, "choice", split="unseen", selection=path, **{"transplant.match_norm": "true"})
    from xtransplant.comparison import strategy_table

    _, other = run_grid(place, "choice", split="unseen")
    with pytest.raises(XTransplantError, match="mode is 'add' in one and 'replace' in the other"):
        strategy_table(Grid.load(sample.folder / "grid.npz"), other)


def test_several_layers_are_written_in_one_run(place: Path) -> None:
    alone = [run_evaluate(place, "choice", **{"transplant.layers": "[3,0]"})]
    both = run_evaluate(place, "choice", **{"transplant.layers": "[[3,2],[3,0]]"})
    assert both.manifest["condition"] == "ffn 3>0, 3>2"
    assert both.manifest["transplant"]["written"] == ["model.layers.0.mlp", "model.layers.2.mlp"]
    assert both.manifest["counts"]["transplants"] == 2 * both.manifest["counts"]["prompts"]
    assert [row["resps"] for row in samples(both)] != [row["resps"] for row in samples(alone[0])]
    for run in (*alone, both):
        shutil.rmtree(run.folder)


def test_both_prompts_in_one(place: Path) -> None:
    run = run_evaluate(place, "choice", prompt="both")
    plain = run_evaluate(place, "choice")
    assert (run.manifest["condition"], plain.manifest["condition"]) == ("vanilla (both prompts)", "vanilla")
    for row, alone in zip(samples(run), samples(plain), strict=True):
        [english] = row["source_prompts"]
        assert [each[0] for each in row["arguments"]] == [f"{english}\n\n{alone['arguments'][0][0]}"] * 3
        assert row["resps"] != alone["resps"]
    for each in (run, plain):
        shutil.rmtree(each.folder)


def test_all_positions_need_prompts_of_equal_length(place: Path) -> None:
    given = {"transplant.layers": "[3,0]", "transplant.positions": "all"}
    with pytest.raises(XTransplantError, match=r"positions=all: \d+ of \d+ prompts .* not\s+as long as their source"):
        run_evaluate(place, "choice", **given)
    with pytest.raises(XTransplantError, match=r"positions=500: \d+ of \d+ prompts are too short"):
        run_evaluate(place, "choice", **given | {"transplant.positions": "500"})
    same = run_evaluate(place, "choice", **given | {"transplant.layers": "[2,2]", "language_pair": "sw-sw"})
    plain = run_evaluate(place, "choice", language_pair="sw-sw")
    for row, alone in zip(samples(same), samples(plain), strict=True):
        mine, theirs = ([float(each[0][0]) for each in some["resps"]] for some in (row, alone))
        np.testing.assert_allclose(mine, theirs, atol=1e-3)
    for each in (same, plain):
        shutil.rmtree(each.folder)
