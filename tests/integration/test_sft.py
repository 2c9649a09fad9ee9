"""Fine-tuning on a tiny checkpoint: what is trained, the same bytes, going on after a kill, what is refused."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.local_tasks import documents, write_tasks
from xtransplant import (
    cli,
    compose,
    disk,
    families,
    jobs,
    lm,
    loading,
    logs,
    pairing,
    record,
    sft,
    tracking_worker,
    training_data,
)
from xtransplant.config import EvaluateConfig, SftConfig, Split, TooLong
from xtransplant.training_data import Example, TrainingData
from xtransplant.types import XTransplantError

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> list[str]:
    return ["model=hf", f"model.path={checkpoint}", "model.name=tiny"]


@pytest.fixture(scope="module")
def task(tasks: Path) -> list[str]:
    return [
        "task=custom", "task.name=colour", 'task.tasks=["colour_choice_{lang}"]', f"task.include_path=[{tasks}]",
        "task.key=id", "task.gold=label",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def arguments(model: list[str], task: list[str]) -> list[str]:
    """A training of 6 steps with dropout, evaluated and kept every second one."""
    return [
        *model, *task, "data.languages=[en,sw]", "steps=6", "batch_size=2", "accumulation=2", "eval_steps=2",
        "checkpoint_steps=2", "lora.rank=2", "lora.dropout=0.1", "learning_rate=0.01", "data.held_out=0.2",
    ]  # fmt: skip


def run(*given: str) -> record.Run:
    """Train; the folder of the only run below outputs."""
    assert cli.main(["sft", *given]) == 0
    place = next((each.partition("=")[2] for each in given if each.startswith("output_dir=")), "outputs")
    [found] = record.find_runs([place], "sft")
    return found


@pytest.fixture(scope="module")
def trained(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> record.Run:
    """One undisturbed run, for all tests that look at one."""
    return run(*arguments, f"output_dir={tmp_path_factory.mktemp('trained')}")


def config_of(job: str, *given: str) -> SftConfig | EvaluateConfig:
    config = compose.compose(job, given)
    assert isinstance(config, SftConfig | EvaluateConfig)
    return config


def data_of(*given: str) -> TrainingData:
    config = config_of("sft", *given)
    assert isinstance(config, SftConfig)
    return training_data.load(config, sft.chat_of(config))


def adapter(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ADAPTER]


# --- A run -----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_an_adapter_and_its_record(arguments: list[str], trained: record.Run, checkpoint: Path) -> None:
    found, folder, manifest = trained, trained.folder, trained.manifest
    assert folder.name.startswith("tiny-colour-lora-en_sw-")
    names = {path.name for path in folder.iterdir()}
    expected = {"config.yaml", "manifest.json", "results.json", "trained_on.json", "training.jsonl", "training.svg"}
    assert names == expected | {*ADAPTER, *logs.FILES}
    assert manifest["job"] == "sft" and (manifest["steps"], manifest["best_step"]) == (6, 6)
    assert "model.safetensors" in manifest["model"]["files"] and manifest["environment"]["versions"]["trl"]

    history = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    steps = [row for row in history if "loss" in row]
    evaluations = [row for row in history if "eval_loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6] and [row["step"] for row in evaluations] == [2, 4, 6]
    assert all(row["learning_rate"] > 0 for row in steps)
    assert [row["seconds"] for row in history] == sorted(row["seconds"] for row in history)
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]
    assert manifest["eval_loss"] == evaluations[-1]["eval_loss"] == found.results["eval_loss"]

    trained_on = json.loads((folder / "trained_on.json").read_text())
    data = data_of(*arguments)
    assert trained_on["documents"] == sorted({each.document for each in data.examples})
    assert manifest["examples_sha256"] == data.sha256 and manifest["examples"] == data.counts()
    assert "<svg" in (folder / "training.svg").read_text() and "held out" in (folder / "training.svg").read_text()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(checkpoint)
    shown = jobs.show_training(folder)
    assert "6      " in shown
    # The command that evaluates it, as it is.
    command = shlex.split(shown.rpartition("To evaluate it: ")[2])
    assert command[:2] == ["xtransplant", "evaluate"]
    asked = config_of("evaluate", *command[2:])
    assert isinstance(asked, EvaluateConfig) and asked.model.adapter == str(folder) and asked.split is Split.unseen
    assert (asked.language_pair.source, asked.language_pair.target) == ("en", "sw")
    assert (asked.model.path, asked.task.tasks) == (str(checkpoint), ["colour_choice_{lang}"])


def tokens_of(examples: list[Example], found: record.Run) -> int:
    """Of the examples, by the tokenizer of a run's model."""
    model = config_of("sft", "model=hf", f"model.path={found.manifest['model']['path']}", "model.name=t").model
    return sft.encode(examples, lm.tokenizing(loading.load_tokenizer(model)), 512, TooLong.cut).tokens


def looked_up(checkpoint: Path) -> int:
    """Parameters of the input embedding, with which nothing is multiplied: the output head has its own."""
    described = json.loads((checkpoint / "config.json").read_text())
    return int(described["vocab_size"] * described["hidden_size"])


def test_cost_is_counted(arguments: list[str], checkpoint: Path) -> None:
    """Of each token the adapter's and the model's products, forwards and backwards."""
    found = run(*arguments, "data.held_out=0", "steps=null", "epochs=1", "accumulation=1")
    data = data_of(*arguments, "data.held_out=0")
    tokens = tokens_of(data.training, found)
    cost, parameters = found.manifest["cost"], found.manifest["parameters"]
    assert cost["tokens"] == tokens
    multiplied = parameters["model"] - looked_up(checkpoint)
    assert cost["flops"] == (4 * multiplied + 6 * parameters["trained"]) * tokens
    # Rank 2 on seven modules of each of four layers: rank x (inputs + outputs).
    each = 2 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 48))
    assert parameters["trained"] == 4 * each
    assert cost["seconds"] > 0


def test_the_same_config_gives_the_same_bytes(arguments: list[str], trained: record.Run, model: list[str]) -> None:
    """Whatever was computed before; and the model that other jobs of the process use stays as it is."""
    torch.manual_seed(99)
    torch.rand(7)
    config = config_of("evaluate", *model, "task=cldr_language").model
    before = {name: weights.clone() for name, weights in loading.load(config).model.named_parameters()}
    second = run(*arguments)
    assert adapter(trained.folder) == adapter(second.folder)
    assert trained.folder.name == second.folder.name
    after = dict(loading.load(config).model.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_more_threads_give_the_same_bytes_and_another_seed_others(arguments: list[str], trained: record.Run) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        second = run(*arguments)
    finally:
        torch.set_num_threads(threads)
    assert adapter(trained.folder) == adapter(second.folder)
    other = run(*arguments, "output_dir=other", "seed=7")
    assert adapter(other.folder)[1] != adapter(trained.folder)[1]


def test_a_killed_training_goes_on_to_the_same_bytes(
    arguments: list[str], trained: record.Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = trained
    write = sft._write_history

    def killed(path: Path, history: Any) -> None:
        write(path, history)
        if history[-1]["step"] == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sft, "_write_history", killed)
        assert cli.main(["sft", *arguments]) == 130
    [begun] = Path("outputs/sft").glob("tiny-*")
    assert not (begun / record.MANIFEST).exists()
    # A checkpoint that was being written when it was killed.
    half = begun / sft.CHECKPOINTS / "checkpoint-5"
    shutil.copytree(begun / sft.CHECKPOINTS / "checkpoint-4", half)
    (half / "trainer_state.json").write_text("{", encoding="utf-8")
    found = run(*arguments)
    assert "Going on from step 4" in caplog.text
    assert adapter(found.folder) == adapter(whole.folder)
    assert not (found.folder / sft.CHECKPOINTS).exists()
    losses = [
        [{name: value for name, value in row.items() if name != "seconds"} for row in map(json.loads, lines)]
        for lines in ((each.folder / "training.jsonl").read_text().splitlines() for each in (whole, found))
    ]
    assert losses[0] == losses[1]
    for name in ("tokens", "flops"):
        assert found.manifest["cost"][name] == whole.manifest["cost"][name]


@pytest.mark.slow
def test_a_process_that_is_killed(arguments: list[str], tmp_path: Path) -> None:
    """By SIGKILL, once it has a checkpoint."""
    longer = [*arguments, "steps=40"]
    command = [sys.executable, "-m", "xtransplant.cli", "sft", *longer]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("outputs/sft/*/checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("outputs/sft/*/manifest.json"))
    assert adapter(run(*longer).folder) == adapter(run(*longer, "output_dir=whole").folder)


def test_a_finished_run_is_found_again(
    arguments: list[str],
    trained: record.Run,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = [*arguments, f"output_dir={trained.folder.parents[1]}", "checkpoint_steps=3"]
    monkeypatch.setattr(sft, "train", lambda *_: pytest.fail("trained anew"))
    run(*given)
    assert "Already done" in caplog.text
    before = (tasks / "sw.jsonl").read_text()
    try:
        (tasks / "sw.jsonl").write_text(before.replace("Rangi", "RANGI"), encoding="utf-8")
        assert cli.main(["sft", *given]) == 2
    finally:
        (tasks / "sw.jsonl").write_text(before, encoding="utf-8")
    assert "changed since then: the examples" in capsys.readouterr().err


@pytest.mark.slow
def test_early_stop_keeps_the_best(arguments: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """With a learning rate that destroys, no later evaluation is better than the first."""
    found = run(*arguments, "learning_rate=50", "patience=2", "steps=40", "schedule=constant", "warmup=0")
    losses = {
        row["step"]: row["eval_loss"]
        for row in map(json.loads, (found.folder / "training.jsonl").read_text().splitlines())
        if "eval_loss" in row
    }
    best = min(losses, key=lambda step: losses[step])
    assert found.manifest["best_step"] == best < found.manifest["steps"] == best + 4
    assert found.manifest["eval_loss"] == losses[best]
    assert f"Ended at step {best + 4}" in caplog.text


@pytest.mark.slow
def test_a_sweep_ends_in_one_table(arguments: list[str], capsys: Any) -> None:
    given = [*arguments, "steps=1", "tracking=none"]
    assert cli.main(["sft", "-m", *given, "lora.rank=1,2"]) == 0
    shown = capsys.readouterr().out
    assert len(record.find_runs(["outputs"], "sft")) == 2
    table, _, commands = shown.partition("To evaluate them:")
    assert table.count("colour") == 2 and "held out" in table and commands.count("xtransplant evaluate ") == 2


def test_what_is_told_to_weights_and_biases(trained: record.Run) -> None:
    found = trained
    content = tracking_worker.of_run(found.folder)
    assert content.job_type == "sft" and content.tags == ["tiny", "colour", "lora", "en", "sw"]
    assert [row["step"] for row in content.history if "eval_loss" in row] == [2, 4, 6]
    assert content.values["final/eval_loss"] == found.manifest["eval_loss"]
    assert content.values["final/tokens"] == found.manifest["cost"]["tokens"]
    assert content.pictures["loss_curve"].startswith(b"\x89PNG")
    header, rows = tracking_worker.trainings([found])
    assert dict(zip(header, rows[0], strict=True))["languages"] == "en sw"


@pytest.mark.slow
def test_the_loss_curve_is_logged_offline(arguments: list[str]) -> None:
    run(*arguments, "tracking=wandb_offline")
    [files] = Path("outputs/wandb").glob("offline-run-*")
    inspected = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(files)]
    text = subprocess.run(inspected, capture_output=True, text=True, check=True).stdout
    assert text.count('"eval_loss"') >= 3 and "final/flops" in text


# --- Evaluating what was trained -------------------------------------------------------------------------------------


def test_documents_that_were_trained_on_are_refused(
    trained: record.Run, model: list[str], task: list[str], tasks: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = trained.folder
    asked = [*model, *task, "language_pair=en-sw"]
    count = len(json.loads((folder / "trained_on.json").read_text())["documents"])
    for job in ("evaluate", "grid"):
        for split in ("all", "sample"):
            assert cli.main([job, *asked, f"model.adapter={folder}", f"split={split}"]) == 2
            said = capsys.readouterr().err
            assert f"it was trained on {count} of" in said and "split=unseen" in said
    assert cli.main(["evaluate", *asked, f"model.adapter={folder}", "split=unseen"]) == 0
    pattern = folder.with_name(f"{folder.name[:-4]}*")
    assert config_of("evaluate", *asked, f"model.adapter={pattern}", "split=unseen").model.adapter == str(folder)
    assert cli.main(["grid", *asked, f"model.adapter={folder}", "split=unseen", "grid.pairs=diagonal", "limit=1"]) == 0
    [evaluated] = record.find_runs(["outputs"])
    assert evaluated.manifest["model"]["adapter"]["training"]["config_hash"] == folder.name.rpartition("-")[2]
    # The other direction, a copy elsewhere, and under another name of the task.
    copied = shutil.copytree(folder, tmp_path / "copied")
    assert cli.main(["evaluate", *asked, f"model.adapter={copied}", "language_pair=sw-en"]) == 2
    for path in tasks.glob("choice_*.yaml"):
        renamed = path.read_text().replace("colour_choice", "renamed")
        (tasks / f"renamed_{path.name}").write_text(renamed, encoding="utf-8")
    families.find_tasks.cache_clear()
    assert cli.main(["evaluate", *asked, f"model.adapter={copied}", 'task.tasks=["renamed_{lang}"]']) == 2
    assert f"trained on {count} of" in capsys.readouterr().err
    (copied / "trained_on.json").write_text("{}", encoding="utf-8")
    assert cli.main(["evaluate", *asked, f"model.adapter={copied}", "split=unseen"]) == 2
    assert "trained_on.json: cannot be read" in capsys.readouterr().err


@pytest.fixture(scope="module")
def selected(model: list[str], task: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A selection made on the untouched model's sample half."""
    place = tmp_path_factory.mktemp("selected")
    asked = [*model, *task, "language_pair=en-sw", "grid.pairs=diagonal", f"output_dir={place}"]
    assert cli.main(["grid", *asked]) == 0
    assert cli.main(["select", f"grid={place}/grid/*", f"output_dir={place}"]) == 0
    return f"selection={place}/select/*/selection.json"


def test_a_selection_of_the_untouched_model_is_applied_if_asked_for(
    trained: record.Run, model: list[str], task: list[str], selected: str, tmp_path: Path, capsys: Any
) -> None:
    """The fine-tuned model cannot be chosen on: it was trained on the sample."""
    asked = [*model, *task, "language_pair=en-sw", selected, "split=unseen"]
    tuned = [*asked, f"model.adapter={trained.folder}"]
    assert cli.main(["evaluate", *tuned]) == 2
    said = capsys.readouterr().err
    assert "other weights of tiny" in said and "selection_of_base=true" in said and "transplant.layers" in said
    # Beside it, in one sweep, the untouched model, on which the key changes nothing.
    sweep = [*asked, f"model.adapter=null,{trained.folder}", "selection_of_base=true", "tracking=none"]
    assert cli.main(["evaluate", "-m", *sweep]) == 0
    runs = {found.manifest["condition"]: found for found in record.find_runs(["outputs"])}
    assert runs.keys() == {"overall", "overall (chosen on base)"}
    moved = runs["overall (chosen on base)"]
    assert moved.folder.name.startswith("tiny-colour-en-sw-adapter-overall_of_base-")
    assert moved.manifest["transplant"]["selected_on"] == "base model"
    assert "selected_on" not in runs["overall"].manifest["transplant"]
    # Alone the key would be refused there: to do it again, it is not asked for.
    assert "selection_of_base: false" in (runs["overall"].folder / "config.yaml").read_text()
    assert "selection_of_base: true" in (moved.folder / "config.yaml").read_text()
    capsys.readouterr()
    assert cli.main(["compare", "runs=outputs", "format=csv"]) == 0
    assert '"SFT (lora, colour, en+sw) + overall (chosen on base)"' in capsys.readouterr().out
    # What was trained on, or selected on, stays refused; so does a selection that is the model's own, or another's.
    assert cli.main(["evaluate", *tuned, "selection_of_base=true", "split=sample"]) == 2
    assert "it was trained on" in capsys.readouterr().err
    [path] = Path(selected.partition("=")[2].partition("/*")[0]).glob("*/selection.json")
    own = disk.unsealed(json.loads(path.read_text()))
    made = moved.manifest["model"]
    for weights, part in (
        ({"files": made["files"], "adapter": made["adapter"]}, "on this very model"),
        ({"files": {}, "adapter": None}, "not made on the model that tiny was fine-tuned from"),
    ):
        own["selections"][0]["grids"][0]["weights"] = weights
        (tmp_path / "own.json").write_text(json.dumps(disk.sealed(own)), encoding="utf-8")
        assert cli.main(["evaluate", *tuned, "selection=own.json", "selection_of_base=true"]) == 2
        assert part in capsys.readouterr().err


def test_all_weights(arguments: list[str], task: list[str], checkpoint: Path, selected: str, capsys: Any) -> None:
    arguments = [each for each in arguments if not each.startswith("lora.")]
    found = run(*arguments, "method=full", "learning_rate=0.001", "weight_decay=0.1")
    assert found.folder.name.startswith("tiny-colour-full-")
    names = {path.name for path in found.folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "trained_on.json"} <= names
    parameters = found.manifest["parameters"]
    assert parameters["model"] == parameters["trained"]
    evaluations = [row for row in (found.folder / "training.jsonl").read_text().splitlines() if "eval_loss" in row]
    data = data_of(*arguments)
    held = tokens_of(data.held_out, found)
    multiplied = parameters["model"] - looked_up(checkpoint)
    tokens = found.manifest["cost"]["tokens"]
    assert found.manifest["cost"]["flops"] == multiplied * (6 * tokens + 2 * held * len(evaluations))
    asked = ["model=hf", f"model.path={found.folder}", "model.name=trained", *task, "language_pair=en-sw"]
    assert cli.main(["evaluate", *asked]) == 2
    assert "it was trained on" in capsys.readouterr().err
    assert cli.main(["evaluate", *asked, "split=unseen"]) == 0
    [evaluated] = record.find_runs(["outputs"])
    provenance = evaluated.manifest["model"]
    assert provenance["training"]["config_hash"] == found.manifest["config_hash"]
    assert not {"log.txt", "manifest.json", "trained_on.json"} & set(provenance["files"])
    # The selection of its base model, which has another name.
    assert cli.main(["evaluate", *asked, "split=unseen", selected]) == 2
    said = capsys.readouterr().err
    assert "no selection for trained and en-sw" in said and "selection_of_base=true" in said
    assert cli.main(["evaluate", *asked, "split=unseen", selected, "selection_of_base=true"]) == 0
    assert "trained, en-sw, overall (chosen on base)" in capsys.readouterr().out
    # Trained once more, on something else: what it saw before still counts.
    write_rows(Path("instructions/en.jsonl"), alpaca("en", 4))
    again = [*asked[:3], "data=local", "data.path=instructions", "data.languages=[en]", "steps=1", "output_dir=again"]
    second = run(*again)
    assert cli.main(["evaluate", *asked, f"model.adapter={second.folder}"]) == 2
    assert str(found.folder) in (said := capsys.readouterr().err) and "it was trained on" in said
    trained_on = json.loads((found.folder / "trained_on.json").read_text())
    assert set(trained_on["documents"]) < set(json.loads((second.folder / "trained_on.json").read_text())["before"])


# --- What is trained on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["choice", "generate", "word", "contexts", "empty"])
def test_answers_are_those_that_the_scoring_takes_for_right(kind: str, task: list[str], model: list[str]) -> None:
    names = f'task.tasks=["colour_{kind}_{{lang}}"]'
    data = data_of(*model, *task, names, "task.empty_prompt=vanilla", "data.languages=[en,sw]", "data.held_out=0")
    assert {each.language for each in data.training} == {"en", "sw"} and not data.held_out
    by_key = {language: {row["id"]: row for row in documents(language)} for language in ("en", "sw")}
    for each in data.training:
        row = by_key[each.language][each.document.partition("/")[2]]
        right = row["choices"][row["label"]]
        if kind == "contexts":
            assert (each.prompt, each.answer) == (row["right" if row["label"] % 2 else "left"], " is a place")
        else:
            assert each.answer == f" {right}"
            assert each.prompt == ("" if kind == "empty" else row["question"])
        assert each.ends == (kind == "generate")
    # Both languages have the same documents, all of the sample half.
    assert len({(each.language, each.document) for each in data.training}) == len(data.training)
    halves = [{each.document for each in data.training if each.language == code} for code in ("en", "sw")]
    assert halves[0] == halves[1]


def test_a_label_that_is_no_choice_is_refused(
    model: list[str], task: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-1 is not the last choice; also where the task scores in its own way, or is a source side only."""
    hidden = {code: [row | {"label": -1} for row in documents(code)] for code in ("en", "sw")}
    folder = write_tasks(tmp_path / "hidden", **hidden)
    given = [*model, *task, f"task.include_path=[{folder}]"]
    with pytest.raises(XTransplantError, match="the right answer is none of the choices"):
        data_of(*given, "data.languages=[sw]")
    monkeypatch.setattr(pairing, "_check_answers", lambda *_: None)
    with pytest.raises(XTransplantError, match="the right answer of a document is none of its choices"):
        data_of(*given, "data.languages=[sw]")


def test_examples_from_the_documents_that_are_evaluated_are_refused(
    model: list[str], task: list[str], tasks: Path
) -> None:
    """They would show the model unseen documents with their answers. From a split of their own they may come."""
    assert data_of(*model, *task, "data.languages=[sw]", "task.num_fewshot=2").training
    for language in ("en", "sw"):
        text = (tasks / f"choice_{language}.yaml").read_text()
        text = text.replace("fewshot_split: train", "fewshot_split: test").replace("colour_choice", "alike")
        (tasks / f"alike_{language}.yaml").write_text(text, encoding="utf-8")
    families.find_tasks.cache_clear()
    given = [*model, *task, 'task.tasks=["alike_{lang}"]', "data.languages=[sw]"]
    assert data_of(*given).training
    with pytest.raises(XTransplantError, match=r"num_fewshot=2: alike_sw draws .* 4 of them are not of the sample"):
        data_of(*given, "task.num_fewshot=2")


def test_a_loss_that_diverges_ends_the_training(arguments: list[str], capsys: Any) -> None:
    given = ["learning_rate=1e30", "schedule=constant", "warmup=0"]
    assert cli.main(["sft", *arguments, *given]) != 0
    assert "learning_rate=1e+30: at step " in capsys.readouterr().err
    assert not list(Path("outputs").rglob(record.MANIFEST))


def test_an_early_stop_needs_held_out_examples_that_fit(model: list[str], arguments: list[str], capsys: Any) -> None:
    harness = lm.tokenizing(loading.load_tokenizer(config_of("evaluate", *model, "task=cldr_language").model))

    def shortest(examples: list[Example]) -> int:
        return min(sft.encode([each], harness, 512, TooLong.cut).tokens for each in examples)

    # Documents are drawn by the seed: one with which all of those held out are longer than some others.
    for seed in range(20):
        data = data_of(*arguments, f"seed={seed}")
        if (fits := shortest(data.training)) < shortest(data.held_out):
            break
    given = [f"seed={seed}", f"max_length={fits}", "too_long=drop", "patience=1"]
    assert cli.main(["sft", *arguments, *given]) == 2
    said = capsys.readouterr().err
    assert f"max_length={fits}: all {len(data.held_out)} examples held out" in said and "patience=null" in said


def test_the_loss_is_on_the_answer_in_the_harness_tokens(model: list[str], task: list[str]) -> None:
    data = data_of(*model, *task, "data.languages=[sw]", "data.held_out=0")
    config = config_of("sft", *model, *task).model
    harness = lm.tokenizing(loading.load_tokenizer(config))
    encoded = sft.encode(data.training, harness, 512, TooLong.cut)
    for each, row in zip(data.training, encoded.rows, strict=True):
        prompt, choice = harness._encode_pair(each.prompt, each.answer)
        assert row["input_ids"] == prompt + choice
        assert row["labels"] == [-100] * len(prompt) + choice
    # Too long: the beginning of the prompt goes first.
    longest = max(len(row["input_ids"]) for row in encoded.rows)
    cut = sft.encode(data.training, harness, longest - 1, TooLong.cut)
    assert cut.cut == sum(len(row["input_ids"]) == longest for row in encoded.rows) and cut.dropped == 0
    for before, row in zip(encoded.rows, cut.rows, strict=True):
        assert row["input_ids"] == before["input_ids"][-(longest - 1) :]
    dropped = sft.encode(data.training, harness, longest - 1, TooLong.drop)
    assert dropped.dropped == cut.cut and len(dropped.rows) == len(encoded.rows) - cut.cut
    # An answer that does not fit ends early; one that is whole ends the text.
    tiny = sft.encode([Example("en", "d/1", "ab", "cdefghijklmnop", True, ())], harness, 4, TooLong.cut)
    assert len(tiny.rows[0]["input_ids"]) == 4 and tiny.rows[0]["labels"][0] == -100
    whole = sft.encode([Example("en", "d/1", "ab", "cd", True, ())], harness, 64, TooLong.cut)
    assert whole.rows[0]["labels"][-1] == harness.eot_token_id


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def alpaca(language: str, count: int = 20) -> list[dict[str, Any]]:
    return [
        {
            "id": n,
            "instruction": f"{language} instruction {n}",
            "input": "" if n % 2 else f"input {n}",
            "output": f"{language} answer {n}",
        }
        for n in range(count)
    ]


LOCAL = ["data=local", "data.path=instructions", "data.languages=[en,zh]"]


def test_instructions_of_a_folder(model: list[str]) -> None:
    write_rows(Path("instructions/en.jsonl"), [*alpaca("en"), alpaca("en", 1)[0] | {"id": 99, "output": " "}])
    write_rows(Path("instructions/zh.jsonl"), alpaca("zh"))
    data = data_of(*model, *LOCAL, "data.held_out=0.2")
    assert data.left_out == 1 and data.counts() == {
        language: {"training": 16, "held_out": 4} for language in ("en", "zh")
    }
    # A document is held out in all its languages.
    assert not {each.document for each in data.training} & {each.document for each in data.held_out}
    one = {each.document: each for each in data.examples if each.language == "en"}
    assert one["local/4"].prompt == "en instruction 4\n\ninput 4" and one["local/4"].answer == "\n\nen answer 4"
    assert one["local/3"].prompt == "en instruction 3" and one["local/3"].ends
    # Fields and lines that are not as they should be.
    for given, said in (
        (
            "data.prompt='{{question}}'",
            r"data\.prompt=\{\{question\}\}: .*instructions: 'question' is undefined\. Their fields: id, in",
        ),
        (
            "data.answer='{{outptu}}'",
            r"data\.answer=.*Did you mean output\? .*Write a template of these, e\.g\. 'data\.answer=",
        ),
        ("data.key=idd", r"data\.key=idd: .*no field idd\. Did you mean id\? .*data\.key=null"),
        ("data.languages=[en,chinese]", r"no file of chinese\. Did you mean zh\?"),
    ):
        with pytest.raises(XTransplantError, match=said):
            data_of(*model, *LOCAL, given)
    assert len({each.document for each in data_of(*model, *LOCAL, "data.key=null").examples}) == 40
    with Path("instructions/zh.jsonl").open("a") as lines:
        lines.write('{"id": 20, "instruction": \n')
    with pytest.raises(XTransplantError, match=r"zh\.jsonl, line 21: not JSON: .*Write one document a line"):
        data_of(*model, *LOCAL)
    write_rows(Path("instructions/zh.jsonl"), alpaca("zh"))
    # A limit takes some of the same documents, and fewer are drawn the same way.
    few = data_of(*model, *LOCAL, "data.limit=5", "data.held_out=0.2")
    assert {each.document for each in few.training} < {each.document for each in data.examples}
    assert len(few.training) == 8 and {each.document for each in few.held_out} <= {
        each.document for each in data.held_out
    }


def test_languages_are_mixed_as_asked(model: list[str]) -> None:
    write_rows(Path("instructions/en.jsonl"), alpaca("en", 30))
    write_rows(Path("instructions/zh.jsonl"), alpaca("zh", 12))

    def mixed(*given: str) -> dict[str, int]:
        found = data_of(*model, *LOCAL, "data.held_out=0", *given)
        return {language: sides["training"] for language, sides in found.counts().items()}

    assert mixed() == {"en": 30, "zh": 12}
    assert mixed("data.mixture=equal") == {"en": 12, "zh": 12}
    assert mixed("data.mixture=weights", "data.weights={en:1,zh:2}") == {"en": 6, "zh": 12}
    assert mixed("data.mixture=weights", "data.weights={en:2.5,zh:1}") == {"en": 30, "zh": 12}
    assert mixed("data.mixture=weights", "data.weights={en:1,zh:0}") == {"en": 30}


def test_one_file_with_a_field_for_the_language(model: list[str]) -> None:
    rows = [row | {"lang": code} for code in ("eng", "zho") for row in alpaca(code, 4)]
    header = list(rows[0])
    lines = [",".join(header), *(",".join(str(row[name]) for name in header) for row in rows)]
    Path("all.csv").write_text("\n".join(lines), encoding="utf-8")
    given = ["data=local", "data.path=all.csv", "data.language_field=lang", "data.codes={en:eng,zh:zho|cmn}"]
    data = data_of(*model, *given, "data.languages=[zh]", "data.held_out=0")
    assert [each.prompt.split()[0] for each in data.training] == ["zho"] * 4
    with pytest.raises(XTransplantError, match=r"no rows of en \(lang: fra\)\. It has: eng, zho\..*\{en: eng\}"):
        data_of(*model, *given, "data.codes={en:fra}", "data.languages=[en]")


def test_data_sets_of_the_hub(model: list[str]) -> None:
    """In folders laid out as theirs, with their field names."""
    aya = [
        {"inputs": f"{code} question {n}", "targets": f"{code} answer {n}", "language": code, "language_code": code,
         "annotation_type": "original-annotations", "user_id": "u"}
        for code in ("eng", "swh", "tur") for n in range(4)
    ]  # fmt: skip
    write_rows(Path("CohereLabs/aya_dataset/data/train.jsonl"), aya)
    Path("CohereLabs/aya_dataset/README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train.jsonl\n---\n"
    )
    data = data_of(*model, "data=aya", "data.languages=[en,sw]", "data.held_out=0")
    assert sorted(each.prompt for each in data.training) == [
        f"{c} question {n}" for c in ("eng", "swh") for n in range(4)
    ]

    for language in ("en", "sw"):
        path = Path("MBZUAI/Bactrian-X/data") / f"{language}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row | {"id": f"alpaca-{row['id']}"} for row in alpaca(language, 6)]
        path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    data = data_of(*model, "data=bactrian_x", "data.languages=[en,sw]", "data.held_out=0.5")
    assert data.counts() == {"en": {"training": 3, "held_out": 3}, "sw": {"training": 3, "held_out": 3}}
    assert {each.document for each in data.training if each.language == "en"} == {
        each.document for each in data.training if each.language == "sw"
    }


def test_instructions_that_ask_what_is_evaluated_are_refused(model: list[str], task: list[str], capsys: Any) -> None:
    rows = [
        {"id": n, "instruction": row["question"], "input": "", "output": row["choices"][0]}
        for n, row in enumerate(documents("sw"))
    ]
    write_rows(Path("instructions/sw.jsonl"), rows[:4])
    folder = run(*model, *LOCAL, "data.languages=[sw]", "steps=1", "data.held_out=0").folder
    assert cli.main(["evaluate", *model, *task, "language_pair=en-sw", f"model.adapter={folder}"]) == 2
    assert "it was trained on 4 of 10 documents" in capsys.readouterr().err


def test_chats(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    with_template = shutil.copytree(checkpoint, tmp_path / "chatty")
    (with_template / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{m.role}}]{{m.content}}<e>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    write_rows(Path("instructions/en.jsonl"), alpaca("en", 3))
    given = ["data=local", "data.path=instructions", "data.languages=[en]", "data.apply_chat_template=true"]
    data = data_of("model=hf", f"model.path={with_template}", "model.name=t", *given, "data.held_out=0")
    [each] = [each for each in data.training if each.document == "local/1"]
    assert each.prompt == "[user]en instruction 1<e>\n[assistant]" and each.answer == "en answer 1<e>" and not each.ends
    (with_template / "chat_template.jinja").unlink()
    assert cli.main(["sft", "model=hf", f"model.path={with_template}", "model.name=t", *given]) == 2
    assert "no chat template" in capsys.readouterr().err


def test_real_instructions(model: list[str], data_dir: Path) -> None:
    folder = data_dir / "sft_alpaca_en_zh"
    data = data_of(*model, "data=local", f"data.path={folder}", "data.languages=[en,zh]", "data.held_out=0.1")
    assert data.counts() == {code: {"training": 2250, "held_out": 250} for code in ("en", "zh")}
    held = [{each.document for each in data.held_out if each.language == code} for code in ("en", "zh")]
    assert held[0] == held[1]
