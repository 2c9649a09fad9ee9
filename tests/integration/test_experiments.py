"""Every experiment file: all of its runs compose, and one of them is done, on a tiny model of its architecture."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.equivalence.tiny import save_checkpoint
from xtransplant import cli, compose, record, selection
from xtransplant.config import EvaluateConfig, GridConfig, LanguagePairConfig, RunJob, SftConfig, TaskJob
from xtransplant.types import XTransplantError

CONF = Path(str(files("xtransplant.conf")), "experiment")
EXPERIMENTS = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
# Architecture and depth of each model preset that an experiment names; the depth matters to pairs of layers.
MODELS = {
    "llama2_7b_chat": ("llama", 32),
    "chinese_alpaca_2_7b": ("llama", 32),
    "mistral_7b_instruct_v0_3": ("mistral", 32),
    "qwen2_7b_instruct": ("qwen2", 28),
    "gemma3_270m": ("qwen3", 18),  # only its depth matters here
    "smollm2_135m": ("llama", 30),
}
SAVED_PAIRS = sorted((CONF / "paper_v1" / "saved_pairs").glob("*.json"))


def job_of(name: str) -> str:
    """The job of the first command in the file's header."""
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    found = re.search(rf"^# xtransplant (\w+) .*experiment={name}\b", text, re.MULTILINE)
    assert found is not None, "no command in the header"
    return found[1]


def read(name: str, *overrides: str, multirun: bool = True) -> compose.Request:
    with compose.open_hydra() as hydra:
        return compose.read(hydra, job_of(name), [f"experiment={name}", *overrides], multirun=multirun)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: save_checkpoint(case, folder / name, num_hidden_layers=layers, max_position_embeddings=4096)
        for name, (case, layers) in MODELS.items()
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two documents a half, in the authors' layout and in that of `tasks/README.md`, for every language asked for."""
    folder = tmp_path_factory.mktemp("data")

    def write(name: str, rows: list[Any]) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    for half in ("sample", "unseen"):
        prompts = [f"{half} {n}: is it so?\n(1) yes\n(2) no\n\nAnswer:" for n in (1, 2)]
        for language in ("ar", "de", "en", "sw", "zh"):
            asked = [f"{language} {prompt}" for prompt in prompts]
            write(f"xtransplant_paper/XNLI/XNLI_{half}/split/{language}.jsonl", asked)
            write(f"xtransplant_paper/XNLI/XNLI_{half}/ans/{language}.jsonl", ["1", "2"])
            write(f"xtransplant_paper/XNLI/XNLI_{half}/ans_lang/{language}.jsonl", [{"1": "a", "2": "b", "3": "c"}])
            write(f"xtransplant_paper/XQuAD/XQuAD_{half}/split/xquad.{language}.jsonl", asked)
            write(f"xtransplant_paper/XQuAD/XQuAD_{half}/ans/xquad.{language}.jsonl", ["yes", "no"])
        for kind, rows in (("split", prompts), ("en", prompts), ("ans", ["1", "2"])):
            write(f"xtransplant_paper/XCOPA/XCOPA_{half}/{kind}/en.jsonl", rows)
        place = f"xtransplant_paper/GlobalOpinionQA/GlobalOpinionQA_{half}"
        items = [{"input_text": prompt, "label": [0.9, 0.1], "country": "Ethiopia"} for prompt in prompts]
        for language in ("am", "zh-CN"):
            write(f"{place}/split/{language}.jsonl", items)
            write(f"{place}/translated/{language}.jsonl", [f"{language} {prompt}" for prompt in prompts])
    for language in ("en", "zh"):
        sums = [
            {"question": f"{language}: {n} + 1?", "answer_number": n + 1, "equation_solution": None} for n in range(4)
        ]
        write(f"mgsm/{language}.train.jsonl", [{**each, "answer": "1"} for each in sums])
        write(f"mgsm/{language}.test.jsonl", [{**each, "answer": None} for each in sums])
    for language in ("ar", "en"):
        questions = [{"example_id": str(n), "question": f"{language}: who is {n}?", "answer": ["I"]} for n in range(4)]
        write(f"mkqa/{language}.test.jsonl", questions)
        statements = [
            {
                "question_idx": n // 4,
                "data_idx": n,
                "prompt_question": f"{language}?",
                "prompt_option": "so",
                "answer": n % 4 == 0,
            }
            for n in range(16)
        ]
        write(f"culturalbench/{language}.jsonl", statements)
    return folder


def test_there_are_enough() -> None:
    assert len(EXPERIMENTS) >= 12


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_value_that_is_swept_over_composes(name: str) -> None:
    axes = read(name, multirun=False).axes
    params = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))["hydra"]["sweeper"]["params"]
    assert set(axes) == set(params)
    values = {key: given.split(",") for key, given in axes.items()}
    language_pairs = values.pop("language_pair", [])
    given_pair = [f"language_pair={pair}" for pair in language_pairs[:1]]
    seen = []
    # Not their product, which is hundreds of runs: each value once.
    for n in range(max(map(len, values.values()), default=1)):
        others = [f"{key}={given[n % len(given)]}" for key, given in values.items()]
        request = read(name, *given_pair, *others, multirun=False)
        assert request.faults == []
        [config] = request.runs
        assert isinstance(config, RunJob)
        assert config.model.name in MODELS
        if n == 0 and isinstance(config, TaskJob):
            # Any pair of languages composes; whether the task has it is a check.
            for pair in language_pairs[1:]:
                other = replace(config, language_pair=LanguagePairConfig(*pair.split("-")))
                assert compose.check(other, unclear=["model"]) == []
                seen.append(repr(other))
        # Whether the weights can be had is not asked here: most are on a hub.
        assert compose.check(config, unclear=["model"]) == []
        seen.append(repr(config))
    assert len(set(seen)) == len(seen) > 1


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_one_document_of_each(
    name: str, checkpoints: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [config] = read(name, multirun=False).runs
    if isinstance(config, SftConfig):
        trained_on_two_documents(name, config, checkpoints, data)
        return
    assert isinstance(config, TaskJob)
    given = [
        f"experiment={name}", f"model.path={checkpoints[config.model.name]}", "model.dtype=float32", "limit=1",
        *([] if config.task.name.startswith("cldr") else [f"task.data_dir={data}"]),
    ]  # fmt: skip
    if isinstance(config, GridConfig):
        given.append("grid.pairs=[[0,0],[last,1]]")
    assert cli.main([job_of(name), *given]) == 0
    [run] = record.find_runs(["outputs"], job_of(name))
    assert run.manifest["counts"]["documents"] >= 1
    transplanted = isinstance(config, GridConfig) or config.transplant.layers is not None or config.selection
    assert (run.manifest["counts"]["transplants"] > 0) == bool(transplanted)


def trained_on_two_documents(name: str, config: SftConfig, checkpoints: dict[str, Path], data: Path) -> None:
    """One step, in one of its languages that there are data of."""
    language = {"xnli": "sw", "xquad": "ar", "globalopinionqa": "am"}.get(
        name.rpartition("/")[2].removesuffix("_sft"), "en"
    )
    assert language in config.data.languages
    given = [
        f"experiment={name}", f"model.path={checkpoints[config.model.name]}", "model.dtype=float32",
        f"data.languages=[{language}]", "steps=1", "epochs=null", "data.limit=2", "data.held_out=0.5",
        *([] if config.task.name.startswith("cldr") else [f"task.data_dir={data}"]),
    ]  # fmt: skip
    assert cli.main(["sft", *given]) == 0
    [run] = record.find_runs(["outputs"], "sft")
    assert run.manifest["examples"] == {language: {"training": 1, "held_out": 1}}


@pytest.mark.parametrize("path", SAVED_PAIRS, ids=lambda path: path.stem)
def test_pairs_that_the_authors_chose(path: Path) -> None:
    """Each is found for its model and language pair by the name that the experiments give, and within the model."""
    given = f"paper_v1/saved_pairs/{path.name}"
    found = selection.read(given)
    assert len(found) >= 33
    for each in found:
        [grid] = each.grids
        [cell] = each.cells
        source, target = grid["language_pair"]
        assert selection.fitting(given, [grid["model_name"]], grid["task_name"], source, target) == each
        assert 0 <= cell.source < MODELS[grid["model_name"]][1] and 0 <= cell.target < MODELS[grid["model_name"]][1]
        assert (cell.target == 0) or each.strategy == "overall"
        assert len(each.documents) in (50, 100) and "d831a4f" in grid["source"]
        assert selection.Selection.from_dict(json.loads(json.dumps(each.as_dict()))) == each


def test_pairs_are_those_of_the_authors_files(data_dir: Path) -> None:
    names = {"llama2_7b_chat": "Llama-2-7b-chat-hf", "mistral_7b_instruct_v0_3": "Mistral-7B-Instruct-v0.3",
             "qwen2_7b_instruct": "Qwen2-7B-Instruct"}  # fmt: skip
    sets = {"xnli": "XNLI", "xcopa": "XCOPA", "xquad": "XQuAD", "globalopinionqa": "GlobalOpinionQA"}
    for path in SAVED_PAIRS:
        dataset, _, strategy = path.stem.partition("_")
        folder = data_dir / "xtransplant_paper" / "saved_pairs" / f"{sets[dataset]}_sample"
        for each in selection.read(str(path)):
            [grid] = each.grids
            own = json.loads((folder / strategy.replace("_", "") / f"{names[grid['model_name']]}.json").read_text())
            language = next((code for code in grid["language_pair"] if code != "en"), "en")
            assert own["zh-CN" if language == "zh" and "zh-CN" in own else language] == list(each.cells[0][1:])


def test_authors_pairs_refuse_the_documents_that_they_were_chosen_on(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["experiment=paper_v1/xnli_saved_pairs", f"model.path={checkpoints['llama2_7b_chat']}"]
    assert cli.main(["evaluate", *given, f"task.data_dir={data}", "model.dtype=float32", "split=sample"]) == 2
    assert "2 of 2 documents were selected on, e.g. paper_xnli_{lang}/sample:0" in capsys.readouterr().err
    # A model of another depth under the same name.
    shallow = save_checkpoint("llama", tmp_path / "shallow")
    assert cli.main(["evaluate", *given[:1], f"model.path={shallow}"]) == 2
    assert "names layers 30 and 5" in capsys.readouterr().err


def test_a_published_selection_for_another_model_is_refused() -> None:
    with pytest.raises(XTransplantError, match=r"no selection for smollm2_135m and en-sw\. It holds: .* \(45 in all\)"):
        selection.fitting("paper_v1/saved_pairs/xnli_overall.json", ["smollm2_135m"], "paper_xnli", "en", "sw")


def test_evaluate_configs_of_one_experiment_differ_in_what_is_swept() -> None:
    request = read("paper_v1/xnli_saved_pairs", "model=llama2_7b_chat", "language_pair=en-tr")
    runs = [config for config in request.runs if isinstance(config, EvaluateConfig)]
    assert {config.selection for config in runs} == {
        None, "paper_v1/saved_pairs/xnli_overall.json", "paper_v1/saved_pairs/xnli_target_first.json",
    }  # fmt: skip
