"""A run computed again: agrees; and where a level is made to differ, that one is named, with how much and its code."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.equivalence.tiny import save_checkpoint
from tests.integration.local_tasks import documents, write_tasks
from tests.unit.grids import choice_grid
from xtransplant import bundle, cli, compose, disk, record, reproduction, sweep, sweep_lm
from xtransplant.config import EvaluateConfig, LanguagePairConfig, ModelConfig, ReproduceConfig, to_dict
from xtransplant.grid import Grid
from xtransplant.types import XTransplantError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a tiny model: choices and texts with a transplant, and a grid of both components."""
    folder = tmp_path_factory.mktemp("reproduce")
    save_checkpoint("llama", folder / "model")
    write_tasks(folder / "tasks")
    for kind in ("choice", "generate"):
        assert cli.main(["evaluate", *given(folder, kind), "transplant.layers=[2,1]"]) == 0
    assert cli.main(["grid", *given(folder, "choice"), "split=all", "limit=5", "transplant.component=[ffn,attn]"]) == 0
    return folder


def given(place: Path, kind: str) -> list[str]:
    return [
        "model=hf", f"model.path={place / 'model'}", "model.name=tiny", "task=custom", f"task.name={kind}",
        f'task.tasks=["colour_{kind}_{{lang}}"]', f"task.include_path=[{place / 'tasks'}]", "task.key=id",
        "task.gold=label", "language_pair=en-sw", f"output_dir={place / 'outputs'}",
    ]  # fmt: skip


def run_of(place: Path, job: str, kind: str) -> Path:
    [found] = (place / "outputs" / job).glob(f"tiny-{kind}-*")
    return found


def data_of(place: Path) -> str:
    """The tasks' own data, which no bundle brings."""
    return f"set=[task.data_dir={place / 'tasks'}]"


def reproduce(tmp_path: Path, run: Path | str, *more: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and reproduction.json."""
    code = cli.main(["reproduce", f"run={run}", f"output_dir={tmp_path / 'again'}", *more])
    found = list((tmp_path / "again").rglob(record.REPRODUCTION))
    return code, json.loads(found[0].read_text(encoding="utf-8")) if found else {}


def doctored(run: Path, tmp_path: Path, change: Callable[[Path], None]) -> Path:
    """A copy of a run with other files, whose manifest has their hashes."""
    copy = tmp_path / "doctored" / run.parent.name / run.name
    shutil.copytree(run, copy)
    change(copy)
    path = copy / record.MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((copy / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(disk.sealed(manifest)), encoding="utf-8")
    return copy


def change_json(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return changed


def change_row(number: int, change: Mapping[str, Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        [path] = folder.glob("samples_*.jsonl")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows[number] |= change
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    return changed


def rezipped(source: Path, target: Path, name: str, change: Callable[[Any], None]) -> Path:
    """A bundle with another JSON file, whose hash bundle.json gives."""
    with zipfile.ZipFile(source) as archive:
        entries = {each: archive.read(each) for each in archive.namelist()}
    content = json.loads(entries[name])
    change(content)
    entries[name] = json.dumps(disk.sealed(content) if "sha256" in content else content).encode()
    listed = json.loads(entries[bundle.CONTENT])
    listed["files"][name] = hashlib.sha256(entries[name]).hexdigest()
    entries[bundle.CONTENT] = json.dumps(listed).encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, data in entries.items():
            archive.writestr(each, data)
    return target


# --- Agrees ----------------------------------------------------------------------------------------------------------


def test_the_same_machine_gives_the_same_bytes(place: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    run = run_of(place, "evaluate", "choice")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    code, found = reproduce(tmp_path, run)
    said = capsys.readouterr().out
    assert code == 0 and "No level differs." in said
    assert list(found["levels"]) == sorted(reproduction.CODES)
    assert all(level["agrees"] for level in found["levels"].values())
    assert found["identical"] == {"results": "yes", "samples": {"colour_choice_sw": True}}
    assert "identical results file: yes; samples: yes" in said
    assert found["levels"]["responses"]["largest"] == 0 and found["levels"]["responses"]["values"] == 30
    [again] = map(Path, found["recomputed"])
    assert (again / "results.json").read_bytes() == before["results.json"]
    # What was checked first was said first; nothing of the original is touched.
    assert said.index("Before the run:") < said.index("responses")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before

    # It is no second run of its kind: it is found where its own folder is named.
    with pytest.raises(XTransplantError, match="holds no finished run of evaluate"):
        record.find_runs([str(tmp_path)])
    assert [each.folder for each in record.find_runs([str(again)])] == [again]

    # Asked again, it stands if nothing that it rests on has changed.
    monkeypatch.setattr(record, "_git", lambda: {"commit": "f" * 40, "changed": False})  # another commit
    for more, computes in (((), True), ((), False), (("batch_size=3",), True), (("overwrite=true",), True)):
        time = (again / record.MANIFEST).stat().st_mtime_ns
        assert reproduce(tmp_path, run, *more)[0] == 0
        assert ((again / record.MANIFEST).stat().st_mtime_ns > time) == computes, more


def test_places_are_no_part_of_the_results(place: Path) -> None:
    results = json.loads((run_of(place, "evaluate", "choice") / "results.json").read_text(encoding="utf-8"))
    moved = json.loads(json.dumps(results).replace(str(place), "/elsewhere"))
    assert moved != results
    assert record.without_places(moved) == record.without_places(results)
    for name in ("results", "versions", "n-samples", "higher_is_better", "max_length"):
        assert record.without_places(results)[name] == results[name]
    other = json.loads(json.dumps(results))
    other["config"]["model_args"]["model"]["dtype"] = "bfloat16"
    assert record.without_places(other) != record.without_places(results)


@pytest.mark.parametrize("kind", ["choice", "generate"])
def test_with_another_batch_size_metrics_are_equal(place: Path, tmp_path: Path, kind: str) -> None:
    run = run_of(place, "evaluate", kind)
    code, found = reproduce(tmp_path, run.name[-12:-4], "batch_size=3", f"output_dir={place / 'outputs'}")
    assert code == 0 and not found  # in the other folder
    again = place / "outputs" / reproduction.FOLDER / run.name
    found = json.loads((again / record.REPRODUCTION).read_text(encoding="utf-8"))
    assert found["put_in"] == ["batch_size=3"]
    [folder] = map(Path, found["recomputed"])
    assert yaml.safe_load((folder / record.CONFIG).read_text())["batch_size"] == 3
    assert found["levels"]["metrics"]["metrics"] == {} and found["identical"]["results"] == "yes"
    responses = found["levels"]["responses"]
    assert responses["largest"] <= 1e-4 and responses["other_texts"] == 0
    assert responses["values" if kind == "choice" else "texts"] > 0
    # The short name still means the run itself.
    assert bundle.find(run.name[-12:-4], output_dir=place / "outputs") == run
    shutil.rmtree(again)


def test_a_bundle_is_computed_again_with_what_it_brought(place: Path, tmp_path: Path, capsys: Any) -> None:
    """Selection and tasks come from the bundle; the documents' texts, withheld, are compared by their hashes."""
    outputs = f"output_dir={tmp_path / 'outputs'}"
    assert cli.main(["grid", *given(place, "choice"), "split=sample", outputs]) == 0
    assert cli.main(["select", f"grid={tmp_path / 'outputs'}/grid/*", "strategy=overall", outputs]) == 0
    [selection] = (tmp_path / "outputs" / "select").rglob("selection.json")
    chosen = [f"selection={selection}", "split=unseen", outputs]
    assert cli.main(["evaluate", *given(place, "choice"), *chosen]) == 0
    [run] = (tmp_path / "outputs" / "evaluate").glob("tiny-*")
    assert cli.main(["export", f"run={run}", f"to={tmp_path / 'run.zip'}"]) == 0
    shutil.rmtree(tmp_path / "outputs")
    # A bundle's task file does not say what is read here.
    code, found = reproduce(tmp_path, tmp_path / "run.zip")
    assert code == 2 and not found and "sw.jsonl is read, and lies in no folder of" in capsys.readouterr().err
    code, found = reproduce(tmp_path, tmp_path / "run.zip", data_of(place))
    assert code == 0, found
    assert found["identical"]["results"] == "but for places" and found["identical"]["samples"] == {
        "colour_choice_sw": True
    }
    assert [line.partition(" (")[0] for line in found["put_in"]] == [
        *(f"task.data_dir={place / 'tasks'}", "task.include_path", "selection"),
    ]
    config = yaml.safe_load((Path(found["recomputed"][0]) / record.CONFIG).read_text())
    assert all(str(tmp_path / "again") in each for each in (config["selection"], *config["task"]["include_path"]))


def test_a_grid_is_gone_on_with_after_a_kill(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    run = run_of(place, "grid", "choice")
    kept = sweep_lm.Shards.add
    added: list[Any] = []

    def killed(shards: Any, *args: Any) -> None:
        if added:
            raise KeyboardInterrupt
        added.append(args)
        kept(shards, *args)

    monkeypatch.setattr(sweep, "batches", lambda decoder, prompts, *_: [[n] for n in range(len(prompts))])
    with monkeypatch.context() as patched:
        patched.setattr(sweep_lm.Shards, "add", killed)
        code, found = reproduce(tmp_path, run)
    assert (
        code == 130 and not found["finished"] and list(found["levels"]) == ["data", "environment", "model", "prompts"]
    )
    code, found = reproduce(tmp_path, run)
    assert code == 0 and found["finished"]
    [again] = map(Path, found["recomputed"])
    assert json.loads((again / record.MANIFEST).read_text())["prompts_answered_before"] == 1
    assert found["levels"]["responses"]["compared"] == 5 * (1 + 32)
    assert found["levels"]["responses"]["largest"] <= 1e-4  # in batches of another size


def test_the_commands_of_the_page_run(place: Path, tmp_path: Path, project_root: Path) -> None:
    """With runs that are here in place of those that it names."""
    page = (project_root / "docs" / "sharing.md").read_text(encoding="utf-8")
    lines = [shlex.split(line)[2:] for line in page.splitlines() if line.startswith("xtransplant reproduce ")]
    assert len(lines) >= 6
    shared = tmp_path / "shared.zip"
    assert cli.main(["export", f"run={run_of(place, 'evaluate', 'choice')}", f"to={shared}"]) == 0
    for number, (run, *more) in enumerate(lines):
        here = run_of(place, "grid" if any("cells" in each for each in more) else "evaluate", "choice")
        if "shared.zip" in run and not any(each.startswith("set=") for each in more):
            more.append(data_of(place))
        more = [
            each.replace("/models/mine", str(place / "model")).replace("=/data", f"={place / 'tasks'}") for each in more
        ]
        code, found = reproduce(tmp_path / str(number), shared if "shared.zip" in run else here, *more)
        assert code == 0 and found["finished"] == ("check_only=true" not in more)


# --- Differs ---------------------------------------------------------------------------------------------------------


def test_environment(place: Path, tmp_path: Path, capsys: Any) -> None:
    run, exported = run_of(place, "evaluate", "choice"), tmp_path / "whole.zip"
    assert cli.main(["export", f"run={run}", f"to={exported}"]) == 0

    def change(manifest: Any) -> None:
        manifest["environment"]["versions"] |= {"numpy": "1.0", "torch": "2.0\x1b[31m"}
        manifest["environment"]["platform"] = "Plan9"

    other = rezipped(exported, tmp_path / "other.zip", f"{bundle.RUN}/{record.MANIFEST}", change)
    code, found = reproduce(tmp_path, other, "check_only=true", data_of(place))
    assert code == 11 and found["first"] == "environment" and not found["finished"]
    assert set(found["levels"]["environment"]["versions"]) == {"numpy", "torch"}
    said = capsys.readouterr().out
    assert "2 of 16: numpy 1.0, here " in said and "the machine: Plan9" in said and "\x1b" not in said
    assert not list((tmp_path / "again").rglob(record.MANIFEST))  # nothing was computed


def test_model_and_what_follows_from_it(place: Path, tmp_path: Path, capsys: Any) -> None:
    """A difference stops nothing: all levels are compared, and the first is named."""
    other = save_checkpoint("llama", tmp_path / "other", rope_theta=500.0)
    run = run_of(place, "evaluate", "choice")
    code, found = reproduce(tmp_path, run, f"set=[model.path={other},model.device=cpu]")
    assert code == 12 and found["exit_code"] == 12 and found["first"] == "model"
    agrees = {name: level["agrees"] for name, level in found["levels"].items()}
    assert (agrees["environment"], agrees["data"], agrees["prompts"], agrees["responses"]) == (True, True, True, False)
    assert "config.json" in found["levels"]["model"]["files"]
    assert found["levels"]["responses"]["largest"] > 1e-2 and found["levels"]["responses"]["documents"]
    assert "Differs first in model: config.json has sha256" in capsys.readouterr().out


def test_data(place: Path, tmp_path: Path, capsys: Any) -> None:
    rows = documents("sw")
    rows[3]["left"] = "elsewhere"
    edited = write_tasks(tmp_path / "tasks", sw=[*rows[:7], *rows[8:]], en=[*documents("en")[:7], *documents("en")[8:]])
    exported = tmp_path / "run.zip"
    assert cli.main(["export", f"run={run_of(place, 'evaluate', 'choice')}", f"to={exported}"]) == 0
    for number, run in enumerate((run_of(place, "evaluate", "choice"), exported)):  # there the texts are hashes
        into = tmp_path / str(number)
        code, found = reproduce(into, run, f"set=[task.include_path=[{edited}]]", "check_only=true")
        assert code == 13
        [amounts] = found["levels"]["data"]["tasks"].values()
        assert (amounts["changed"], amounts["missing"], amounts["new"]) == (["doc-3"], ["doc-7"], [])
        assert amounts["documents"] == [10, 9]
        assert "of 10 target documents 1 changed, 1 missing, e.g. doc-3" in capsys.readouterr().out


def test_prompts(place: Path, tmp_path: Path) -> None:
    edited = write_tasks(tmp_path / "tasks")
    path = edited / "choice_sw.yaml"
    task = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(task | {"doc_to_text": "{{question}}?"}))
    run, more = run_of(place, "evaluate", "choice"), f"set=[task.include_path=[{edited}]]"
    code, found = reproduce(tmp_path / "1", run, more, "check_only=true")
    assert code == 14 and found["levels"]["prompts"]["tasks"]["colour_choice_sw"]["unlike"] == ["questions_sha256"]
    # Other choices are seen when the requests are built.
    path.write_text(yaml.safe_dump(task | {"target_delimiter": "  "}))
    code, found = reproduce(tmp_path / "2", run, more)
    assert code == 14 and len(found["levels"]["prompts"]["tasks"]["colour_choice_sw"]["changed"]) == 10
    assert found["levels"]["data"]["agrees"] and found["levels"]["responses"]["agrees"] is False


def test_responses(place: Path, tmp_path: Path, capsys: Any) -> None:
    run = run_of(place, "evaluate", "choice")
    [path] = run.glob("samples_*.jsonl")
    answers = json.loads(path.read_text().splitlines()[4])["resps"]
    answers[1][0][0] += 0.125
    code, found = reproduce(tmp_path / "1", doctored(run, tmp_path / "1", change_row(4, {"resps": answers})))
    assert code == 15 and found["levels"]["responses"]["documents"] == ["colour_choice_sw/doc-4"]
    assert found["levels"]["responses"]["largest"] == pytest.approx(0.125, abs=1e-4)
    assert found["levels"]["metrics"]["agrees"]
    assert "largest difference 0.125" in capsys.readouterr().out
    code, found = reproduce(
        tmp_path / "1", doctored(run, tmp_path / "2", change_row(4, {"resps": answers})), "tolerance=1"
    )
    assert code == 0

    run = run_of(place, "evaluate", "generate")
    code, found = reproduce(tmp_path / "3", doctored(run, tmp_path / "3", change_row(2, {"resps": [["something"]]})))
    assert code == 15 and found["levels"]["responses"]["other_texts"] == 1
    assert "1 of 10 documents" in capsys.readouterr().out


def test_metrics(place: Path, tmp_path: Path, capsys: Any) -> None:
    run = run_of(place, "evaluate", "choice")

    def change(results: Any) -> None:
        results["results"]["colour_choice_sw"]["acc,none"] += 0.25

    code, found = reproduce(tmp_path / "1", doctored(run, tmp_path / "1", change_json("results.json", change)))
    assert code == 16 and list(found["levels"]["metrics"]["metrics"]) == ["colour_choice_sw: acc,none"]
    assert "(-0.25)" in capsys.readouterr().out and found["identical"]["results"] == "no"
    # One document's score, whatever the mean says.
    [path] = run.glob("samples_*.jsonl")
    score = json.loads(path.read_text().splitlines()[6])["acc"]
    code, found = reproduce(tmp_path / "2", doctored(run, tmp_path / "2", change_row(6, {"acc": 1 - score})))
    assert code == 16 and found["levels"]["metrics"]["metrics"]["colour_choice_sw: acc,none"]["documents"] == ["doc-6"]


def test_cells(place: Path, tmp_path: Path, capsys: Any) -> None:
    run = run_of(place, "grid", "choice")
    code, found = reproduce(tmp_path / "1", run, "cells=5", "seed=3")
    assert code == 0 and len(found["cells"]) == 5 and found["identical"] is None
    assert len(found["recomputed"]) == len({component for component, _, _ in found["cells"]}) == 2
    assert found["levels"]["responses"]["compared"] == 5 * 5
    assert found["levels"]["responses"]["largest"] <= 1e-4
    assert found["levels"]["metrics"]["scores"]["acc"] == {"values": 25, "differ": 0, "largest": 0.0}
    component, source, target = found["cells"][2]

    def change(folder: Path) -> None:
        grid = Grid.load(folder / "grid.npz")
        assert grid.logprob is not None
        column = [(c.component.value, c.source, c.target) for c in grid.cells].index((component, source, target))
        scores, logprob = grid.scores.copy(), grid.logprob.copy()
        scores[0, 1, column] = 1 - scores[0, 1, column]
        logprob[3, column, 0] -= 2
        replace(grid, scores=scores, logprob=logprob).save(folder / "grid.npz")

    other = doctored(run, tmp_path, change)
    code, found = reproduce(tmp_path / "2", other, "cells=5", "seed=3")
    assert code == 15 and found["levels"]["responses"]["largest"] == pytest.approx(2, abs=1e-3)
    [document] = found["levels"]["responses"]["documents"]
    assert "doc-3" in document and f"({component} {source}>{target})" in document
    assert found["levels"]["metrics"]["scores"]["acc"]["differ"] == 1
    code, found = reproduce(tmp_path / "3", other)
    assert code == 15 and found["levels"]["metrics"]["cells"]["acc"]["differ"] == 1
    assert found["identical"]["grid"] is False and found["identical"]["results"] == "yes"


# --- What cannot be compared ------------------------------------------------------------------------------------------


def ran(rows: int = 2, **facts: Any) -> reproduction.Ran:
    """A run of so many documents, made up."""
    manifest = {"job": "grid", "counts": {"prompts": 2}}
    documents = {("k", str(number)): {"key": "k", "resps": [["text"]]} for number in range(rows)}
    results = {"results": {"t": {"acc,none": 1.0}}}
    return reproduction.Ran("a", manifest, results, {"t": facts}, {"t": documents}, {"t": "ab"}, frozenset(), None)


def test_what_was_not_recorded_does_not_agree() -> None:
    here = {"t": {"documents": 2, "keys_sha256": "a", "docs_sha256": "b", "questions_sha256": "c"}}
    recorded: Any = here["t"]
    assert reproduction.data(ran(**recorded), here, {}).agrees is True
    assert reproduction.prompts(ran(**recorded), here).agrees is True
    without = ran(documents=2)
    for level in (reproduction.data(without, here, {}), reproduction.prompts(without, here)):
        assert level.agrees is None and "of t the run has recorded no hashes" in level.said
    assert reproduction.prompts(ran(**recorded), here, ran(**recorded)).agrees is None  # no prompts_sha256
    assert reproduction.model({"files": {}}, {"files": {}}).agrees is None
    assert reproduction.model({"files": {}}, {"files": {"a": "b"}}).agrees is False
    assert reproduction.responses(ran(0), ran(0), 0.0).agrees is None
    assert reproduction.responses(ran(0), ran(2), 0.0).agrees is False
    assert reproduction.responses(ran(2), ran(0), 0.0).agrees is False


def test_cells_and_metrics_that_are_not_there_any_more_differ() -> None:
    recorded = choice_grid(documents=4, num_layers=2, best=None)
    cells = recorded.cells[:2]
    assert [each.agrees for each in reproduction.in_cells(recorded, [recorded], cells, 0.0)] == [True, True]
    one = choice_grid(documents=4, num_layers=2, best=None, components=[recorded.cells[-1].component])
    responses, _ = reproduction.in_cells(recorded, [one], cells, 0.0)
    assert responses.agrees is False and responses.amounts["missing"] == 8
    renamed = choice_grid(documents=4, num_layers=2, best=None, metrics=["f1"], higher_is_better={"f1": True})
    responses, metrics = reproduction.in_cells(recorded, [renamed], cells, 0.0)
    assert responses.agrees is True and metrics.agrees is False and metrics.amounts["scores"]["acc"]["differ"] == 8


def test_a_text_may_hold_what_is_a_line_end_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "samples_t.jsonl"
    row = {"key": "k", "filter": "none", "resps": [["one\u2028two\x85three\u2029"]]}
    path.write_text(record.as_json(row, indent=None), encoding="utf-8")
    assert reproduction._read_rows(path, "a") == {("k", "none"): row}
    path.write_text(record.as_json(row, indent=None) * 2, encoding="utf-8")
    with pytest.raises(XTransplantError, match="line 2: k is there twice"):
        reproduction._read_rows(path, "a")
    path.write_bytes(b"\xff")
    with pytest.raises(XTransplantError, match="cannot be read"):
        reproduction._read_rows(path, "a")


# --- Refused ---------------------------------------------------------------------------------------------------------


def edit_config(changes: Mapping[str, Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        config = yaml.safe_load((folder / record.CONFIG).read_text())
        for key, value in changes.items():
            section, _, name = key.rpartition(".")
            (config[section] if section else config)[name] = value
        (folder / record.CONFIG).write_text(yaml.safe_dump(config))

    return changed


@pytest.mark.parametrize(
    ("job", "change", "more", "said"),
    [
        ("grid", None, ["batch_size=2"], "batch_size: a grid has none"),
        ("evaluate", None, ["cells=2"], "Only a grid has cells"),
        ("grid", None, ["cells=1000"], "cells=1000: the grid has 32"),
        ("evaluate", None, ["cells=0"], "cells=0: wrong value"),
        ("evaluate", None, ["set=[model.pth=x]"], "there is no key model.pth. Did you mean model.path?"),
        ("evaluate", None, ["set=[limit=many]"], "set: limit=many: wrong value"),
        ("evaluate", None, ["set=[limit]"], "keys of the run's config with values"),
        ("evaluate", None, ["set=[model.path=/nowhere]"], "What lies elsewhere on this machine is said by set="),
        ("evaluate", edit_config({"model.trust_remote_code": True}), [], "add set=[model.trust_remote_code=true]"),
        ("evaluate", edit_config({"model.allow_pickle": True}), [], "It is not taken over"),
        ("evaluate", edit_config({"batch": 3}), [], "there is no key batch."),
        ("evaluate", edit_config({"transplant.match_norm": 2}), [], "transplant.match_norm is not as a run writes it"),
        ("evaluate", edit_config({"model.path": "${oc.env:HOME}"}), [], "${oc.env:HOME}"),
        ("evaluate", edit_config({"model.path": r"\${oc.env:HOME}"}), [], r"\${oc.env:HOME}"),
        ("evaluate", None, ["set=['model.path=${oc.env:HOME}']"], "reads the variable HOME"),
        ("evaluate", change_json("manifest.json", lambda each: each.pop("environment")), [], "KeyError('environment')"),
        ("evaluate", change_row(0, {"resps": "none"}), [], "line 1: no document of a file of samples"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    place: Path, tmp_path: Path, capsys: Any, job: str, change: Any, more: list[str], said: str
) -> None:
    run = run_of(place, job, "choice")
    if change is not None:
        run = doctored(run, tmp_path, change)
    code, found = reproduce(tmp_path, run, *more)
    assert code == 2 and not found
    assert said in capsys.readouterr().err


def test_a_run_that_was_computed_again_is_not_written_over(place: Path, tmp_path: Path, capsys: Any) -> None:
    run = run_of(place, "evaluate", "choice")
    _, found = reproduce(tmp_path, run)
    [again] = map(Path, found["recomputed"])
    before = (again / record.MANIFEST).stat().st_mtime_ns
    assert cli.main(["reproduce", f"run={again}", f"output_dir={tmp_path / 'again'}", "overwrite=true"]) == 2
    assert "Give another output_dir" in capsys.readouterr().err
    assert (again / record.MANIFEST).stat().st_mtime_ns == before


def test_settings_are_read_as_they_are_meant(tmp_path: Path) -> None:
    """Hydra's grammar has no = in a list, reads 12e456 as a number, and knows no ~ in a value."""
    asked = ["run=12e456", "set=[model.path=~/a=b (1),task.tasks=[x,y],limit=3,task.key='a,b']", "output_dir=here"]
    with compose.open_hydra() as hydra:
        request = compose.read(hydra, "reproduce", asked)
    [config] = request.runs
    assert isinstance(config, ReproduceConfig) and not request.faults
    assert config.run == "12e456"
    assert config.set == ["model.path=~/a=b (1)", "task.tasks=[x,y]", "limit=3", "task.key='a,b'"]
    content = to_dict(EvaluateConfig(model=ModelConfig("m", "p"), language_pair=LanguagePairConfig("en", "sw")))
    content["task"] |= {"name": "t", "tasks": ["z"], "key": "id"}
    made, faults = compose.recorded("evaluate", content, config.set, "here")
    assert isinstance(made, EvaluateConfig) and not faults
    assert (made.model.path, made.task.tasks, made.limit, made.task.key) == ("~/a=b (1)", ["x", "y"], 3, "a,b")
    del content["prompt"], content["transplant"]["scope"]  # of an older version
    made, faults = compose.recorded("evaluate", content, [], "here")
    assert isinstance(made, EvaluateConfig) and made.model.path == "p" and not faults


def test_a_training_is_left_to_its_own_command(tmp_path: Path) -> None:
    opened = bundle.Opened("x.zip", tmp_path, {"job": "sft"}, {"steps": 7, "method": "full"}, {})
    with pytest.raises(XTransplantError, match=r"To train again: xtransplant sft .*steps=7"):
        raise reproduction.training_refused(opened)
