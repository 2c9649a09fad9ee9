"""The jobs that read grids: which grids they take, which controls stand beside which, where they write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.equivalence.tiny import save_checkpoint
from tests.integration.local_tasks import write_tasks
from tests.integration.test_grid import run_evaluate, run_grid
from xtransplant import grid_jobs
from xtransplant.compose import compose
from xtransplant.config import AnalyzeConfig, SelectConfig, StrategiesConfig
from xtransplant.types import XTransplantError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample grid, an unseen one, and a control on part of the sample."""
    folder = tmp_path_factory.mktemp("grid")
    save_checkpoint("llama", folder / "model")
    write_tasks(folder / "tasks")
    run_grid(folder, "choice", split="sample")
    run_grid(folder, "choice", split="unseen")
    run_grid(folder, "choice", split="sample", limit=6, **{"transplant.control": "noise"})
    return folder


def grids(place: Path, pattern: str) -> str:
    return f"{place / 'outputs' / 'grid' / pattern}"


def analyze(place: Path, *given: str) -> Path:
    before = set((place / "outputs").glob("analyze/*"))
    config = compose("analyze", [*given, f"output_dir={place / 'outputs'}"])
    assert isinstance(config, AnalyzeConfig)
    grid_jobs.analyze(config)
    [made] = set((place / "outputs").glob("analyze/*")) - before
    return made


def test_a_control_stands_beside_the_grid_that_has_its_documents(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given with both halves, as a study has them."""
    sample, unseen, noise = (grids(place, f"*{name}*") for name in ("sample-????????????", "unseen", "noise"))
    analyze(place, f"grid=[{sample},{unseen}]", f"controls={noise}")
    first, _, second = capsys.readouterr().out.partition("unseen")
    assert "noise" in first and "noise" not in second
    with pytest.raises(XTransplantError, match=r"controls: tiny colour en-sw sample: no grid to compare it with\."):
        analyze(place, f"grid={unseen}", f"controls={noise}")


def test_the_same_grids_in_other_roles_are_other_results(place: Path) -> None:
    sample, noise = grids(place, "*sample-????????????"), grids(place, "*noise*")
    assert analyze(place, f"grid=[{sample},{noise}]") != analyze(place, f"grid={sample}", f"controls={noise}")


def test_nothing_is_chosen_on_a_control_that_a_pattern_takes_in(
    place: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"output_dir={place / 'outputs'}"
    config = compose("select", [f"grid={grids(place, '*-sample-*')}", output])
    assert isinstance(config, SelectConfig)
    with caplog.at_level("INFO"):
        grid_jobs.select(config)
    assert "1 control grids among them are left out" in caplog.text
    config = compose("select", [f"grid={grids(place, '*noise*')}", output])
    assert isinstance(config, SelectConfig)
    with pytest.raises(XTransplantError, match="grid: only control grids there"):
        grid_jobs.select(config)
    both = [f"grid={grids(place, '*-sample-*')}", f"unseen={grids(place, '*-unseen-*')}"]
    config = compose("strategies", [*both, f"controls={grids(place, '*noise*')}", output])
    assert isinstance(config, StrategiesConfig)
    capsys.readouterr()
    grid_jobs.strategies(config)
    assert "upper bound, control noise" in capsys.readouterr().out


@pytest.mark.parametrize("changed", ["en.jsonl", "choice_sw.yaml"])
def test_a_finished_run_of_other_documents_is_not_taken_for_this_one(tmp_path: Path, changed: str) -> None:
    save_checkpoint("llama", tmp_path / "model")
    write_tasks(tmp_path / "tasks")
    given = {"limit": 3, "grid.pairs": "diagonal"}
    first, _ = run_grid(tmp_path, "choice", **given)
    run_evaluate(tmp_path, "choice", limit=3)
    assert run_grid(tmp_path, "choice", **given)[0].manifest == first.manifest
    file = tmp_path / "tasks" / changed
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("The colour of", "A colour of").replace("{{question}}", "So: {{question}}"))
    what = "documents" if changed == "en.jsonl" else r"questions \(prompts\)"
    for ask, own in ((run_grid, given), (run_evaluate, {"limit": 3})):
        with pytest.raises(XTransplantError, match=rf"changed since then: the {what} of colour_choice_sw\. .*over"):
            ask(tmp_path, "choice", **own)
    again, _ = run_grid(tmp_path, "choice", **given, overwrite=True)
    assert again.manifest["tasks"] != first.manifest["tasks"]


def test_a_finished_run_of_other_weights_is_not_taken_for_this_one(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path / "model")
    write_tasks(tmp_path / "tasks")
    given = {"limit": 3, "grid.pairs": "diagonal"}
    run, _ = run_grid(tmp_path, "choice", **given)
    evaluated = run_evaluate(tmp_path, "choice", limit=3)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    changed = {name: tensor + 0.5 * torch.ones_like(tensor) for name, tensor in weights.items()}
    save_file(changed, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    for folder, ask in ((run.folder, run_grid), (evaluated.folder, run_evaluate)):
        own = given if ask is run_grid else {"limit": 3}
        with pytest.raises(XTransplantError, match=r"changed since then: .*model\.safetensors.*overwrite=true"):
            ask(tmp_path, "choice", **own)
        assert (folder / "manifest.json").is_file()
    again, _ = run_grid(tmp_path, "choice", **given, overwrite=True)
    assert again.manifest["model"]["files"] != run.manifest["model"]["files"]
