"""`xtransplant compare` on real runs of a tiny model: every condition, what they cost, what is refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.equivalence.tiny import save_checkpoint, tiny
from tests.integration.local_tasks import documents, write_tasks
from xtransplant import cli, disk, loading, record
from xtransplant.config import ModelConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, an adapter for it, tasks, and a run of each condition."""
    here = tmp_path_factory.mktemp("compare")
    save_checkpoint("llama", here / "llama")
    write_tasks(here / "tasks")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # PEFT's own, of transformers
        base = tiny("llama", vocab_size=json.loads((here / "llama" / "config.json").read_text())["vocab_size"])
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False))
    adapted.save_pretrained(str(here / "adapter"))
    for job, *given in (
        ("evaluate", "-m", "language_pair=en-sw,sw-en", "transplant.layers=null,[3,1]"),
        ("evaluate", "language_pair=en-sw", "prompt=both"),
        ("evaluate", "-m", f"model.adapter={here / 'adapter'}", "language_pair=en-sw", "transplant.layers=null,[3,1]"),
        ("grid", "language_pair=en-sw", "split=all", "limit=6", "grid.pairs=target_first"),
        ("grid", "language_pair=en-sw", "split=all", "limit=5", "grid.pairs=target_first", "transplant.control=noise"),
        ("grid", "language_pair=en-sw", "split=sample", "grid.pairs=target_first"),
    ):
        assert cli.main([job, *arguments(here), *given, f"output_dir={here / 'outputs'}"]) == 0
    grid = here / "outputs" / "grid" / "*-sample-*"
    assert cli.main(["select", f"grid={grid}", f"output_dir={here / 'outputs'}"]) == 0
    [chosen] = (here / "outputs" / "select").glob("*/selection.json")
    given = ["language_pair=en-sw", "split=unseen", f"output_dir={here / 'outputs'}"]
    for more in ([], [f"selection={chosen}"]):
        assert cli.main(["evaluate", *arguments(here), *given, *more]) == 0
    return here


def arguments(here: Path) -> list[str]:
    return [
        "model=hf", f"model.path={here / 'llama'}", "model.name=tiny", "task=custom", "task.name=colour",
        'task.tasks=["colour_choice_{lang}"]', f"task.include_path=[{here / 'tasks'}]", "task.key=id", "tracking=none",
    ]  # fmt: skip


def compared(capsys: Any, *given: str) -> list[dict[str, str]]:
    capsys.readouterr()
    assert cli.main(["compare", *given, "format=csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_every_condition_of_real_runs(place: Path, capsys: Any) -> None:
    lines = compared(capsys, f"runs={place / 'outputs'}")
    every = [line for line in lines if line["split"] == "all" and line["pair"] == "en-sw"]
    assert {line["condition"]: line["kind"] for line in every} == {
        "vanilla": "vanilla",
        "vanilla (both prompts)": "pim",
        "ffn 3>1": "transplant",
        "SFT (adapter)": "sft",
        "SFT (adapter) + ffn 3>1": "sft+transplant",
        "upper bound (ffn, target_first)": "upper_bound",
        "control noise (ffn, target_first)": "chance",
    }
    runs = {run.folder.name: run for run in record.find_runs([str(place / "outputs")])}
    for line in every:
        if line["kind"] in ("upper_bound", "chance"):
            count = 6 if line["kind"] == "upper_bound" else 5
            assert int(line["documents"]) == count and line["note"].startswith(f"on {count} of 10 documents")
            continue
        run = runs[Path(line["folder"]).name]
        [path] = run.folder.glob("samples_*.jsonl")
        scores = [row["acc"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())]
        assert float(line["score"]) == np.mean(scores)
        assert int(line["tokens"]) == run.manifest["cost"]["tokens"]
        if line["difference"]:
            assert float(line["difference"]) == pytest.approx(float(line["score"]) - float(line["vanilla"]))
            assert int(line["wins"]) - int(line["losses"]) == round(10 * float(line["difference"]))
    assert {line["pooled"] for line in lines if line["condition"] == "ffn 3>1" and not line["pair"]} == {
        "micro",
        "macro",
    }
    [chosen] = [line for line in lines if line["kind"] == "strategy"]
    [grid] = (place / "outputs" / "grid").glob("*-sample-*/manifest.json")
    cost = json.loads(grid.read_text(encoding="utf-8"))["cost"]
    assert (float(chosen["training_flops"]), int(chosen["training_tokens"])) == (cost["flops"], cost["tokens"])


def test_what_a_run_cost_is_what_its_prompts_and_choices_take(place: Path, capsys: Any) -> None:
    found = compared(capsys, f"runs={place / 'outputs' / 'evaluate' / '*-en-sw-*'}")
    lines = {line["condition"]: line for line in found if line["split"] == "all"}
    loaded = loading.load(ModelConfig("tiny", str(place / "llama")))

    def tokens(text: str) -> list[int]:
        found: list[int] = loaded.tokenizer.encode(text, add_special_tokens=False)
        return found

    target, source = 0, 0
    for own, parallel in zip(documents("sw"), documents("en"), strict=True):
        prompt = tokens(own["question"])
        wholes = [tokens(f"{own['question']} {choice}") for choice in own["choices"]]
        assert all(whole[: len(prompt)] == prompt for whole in wholes)
        begun = {tuple(whole[len(prompt) : end]) for whole in wholes for end in [len(whole) - 1] if end > len(prompt)}
        target += len(prompt) + sum(map(len, begun))
        source += len(tokens(parallel["question"]))
    assert int(lines["vanilla"]["tokens"]) == target
    assert int(lines["ffn 3>1"]["tokens"]) == target + source
    layers = loaded.model.model.layers
    per_token = 2 * sum(each.numel() for each in layers.parameters())
    more = float(lines["ffn 3>1"]["flops"]) - float(lines["vanilla"]["flops"])
    assert more == source * per_token
    assert float(lines["SFT (adapter)"]["flops"]) == float(lines["vanilla"]["flops"])


def test_a_control_stands_beside_the_runs_of_its_documents(place: Path, tmp_path: Path, capsys: Any) -> None:
    """Its vectors are of other documents; what is asked, and whom it answers, is the same."""
    given = ["-m", *arguments(place), "language_pair=en-sw", f"output_dir={tmp_path}"]
    assert (
        cli.main(["evaluate", *given, "transplant.layers=null,[3,1]", "transplant.control=none,random_document"]) == 0
    )
    runs = [f"runs={tmp_path / 'evaluate'}"]
    lines = {line["condition"]: line for line in compared(capsys, *runs)}
    assert lines.keys() == {"vanilla", "ffn 3>1", "ffn 3>1 (random_document)"}
    assert cli.main(["summarize", *runs, "format=csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {(line["kind"], line["pair"]) for line in table} == {("pair", "en-sw")}
    for line in table:
        same = lines[line["condition"]]
        assert (line["difference"] == "") == (line["condition"] == "vanilla")
        assert (line["score"], line["difference"]) == (same["score"], same["difference"])


def test_a_sweep_names_its_runs(place: Path, capsys: Any) -> None:
    sweeps = {
        len(json.loads(path.read_text())["runs"]): path.parent
        for path in (place / "outputs").glob("sweeps/*/sweep.json")
    }
    lines = compared(capsys, f"runs={sweeps[4]}")
    assert {line["condition"] for line in lines} == {"vanilla", "ffn 3>1"}
    assert {line["pair"] for line in lines} == {"en-sw", "sw-en", ""}


def test_text_is_to_be_read(place: Path, tmp_path: Path, capsys: Any) -> None:
    capsys.readouterr()
    given = f"runs={place / 'outputs'}"
    assert cli.main(["compare", given, "against=sft"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    headings = (
        "tiny, colour, all: acc, against vanilla",
        "against SFT (adapter)",
        "What it costs: tiny, colour, unseen",
    )
    for each in (*headings, "could be chance", "oracle, ", "McNemar's exact test", "controls reach: noise"):
        assert each in text
    for form, sign in (("markdown", "### tiny"), ("latex", r"\toprule")):
        path = tmp_path / form
        assert cli.main(["compare", given, f"format={form}", f"output={path}"]) == 0
        assert sign in path.read_text(encoding="utf-8")


def test_other_documents_are_refused_by_name(
    place: Path, tmp_path: Path, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(place / "outputs" / "evaluate", tmp_path / "evaluate")
    # A grid of the sample half says that it is of all, where all documents are those of the other half.
    [unseen] = [run for run in record.find_runs([str(tmp_path)]) if run.manifest["condition"] == "overall"]
    alone = ["compare", f"runs=[{unseen.folder},{tmp_path / 'grid'}]"]
    shutil.copytree(place / "outputs" / "grid", tmp_path / "grid")
    for path in (tmp_path / "grid").glob("*-sample-*/manifest.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        record.write(path, record.as_json(disk.sealed(facts | {"split": "unseen"})))
    capsys.readouterr()
    assert cli.main(alone) == 0
    left_out = "A grid is left out: documents of colour_choice_sw: 6, 6 of which the other lacks (e.g. doc-2)"
    assert left_out in " ".join(capsys.readouterr().out.split())
    assert [each.getMessage()[: len(left_out)] for each in caplog.records] == [left_out]
    shutil.rmtree(tmp_path / "grid")
    few = ["limit=4", "language_pair=en-sw", "transplant.layers=[3,1]", f"output_dir={tmp_path}"]
    assert cli.main(["evaluate", *arguments(place), *few]) == 0
    capsys.readouterr()
    assert cli.main(["compare", f"runs={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "documents of colour_choice_sw: 4 in " in said and ", 10 in " in said and "vanilla" in said
    assert cli.main(["compare", f"runs={place / 'outputs'}", "against=sfd"]) == 2
    assert "against=sfd: no such condition" in capsys.readouterr().err
    training = tmp_path / "sft" / "one"
    training.mkdir(parents=True)
    record.write(training / "results.json", "{}")
    record.close_run(training, {"job": "sft"})
    assert cli.main(["compare", f"runs={training.parent}"]) == 2
    assert "only trainings there" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["compare", f"runs={tmp_path / 'empty'}"]) == 2
    assert "holds no finished run of evaluate or grid or sft" in capsys.readouterr().err
