"""The command line from end to end on a tiny checkpoint and tasks of a user's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from tests.integration.local_tasks import documents
from xtransplant import captures, cli, loading, logs, pairing, record
from xtransplant.captures import Captures


@pytest.fixture
def arguments(checkpoint: Path, tasks: Path, tmp_path: Path) -> list[str]:
    return [
        "model=hf", f"model.path={checkpoint}", "model.name=tiny", "task=custom", "task.name=colour",
        'task.tasks=["colour_choice_{lang}"]', f"task.include_path=[{tasks}]", "task.key=id", "task.gold=label",
        "language_pair=en-sw", f"output_dir={tmp_path / 'outputs'}",
    ]  # fmt: skip


def run(*given: str) -> None:
    assert cli.main(["evaluate", *given]) == 0


def only_run(folder: Path) -> record.Run:
    [found] = record.find_runs([str(folder / "outputs")])
    return found


def test_a_run_leaves_a_complete_record(arguments: list[str], tmp_path: Path, capsys: Any) -> None:
    run(*arguments, "transplant.layers=[last,1]", "limit=7", "batch_size=3")
    found = only_run(tmp_path)
    assert found.folder.name.startswith("tiny-colour-en-sw-ffn-3-1-")
    names = {path.name for path in found.folder.iterdir()}
    assert names == {"config.yaml", "results.json", "samples_colour_choice_sw.jsonl", "manifest.json", *logs.FILES}
    assert not set(logs.FILES) & set(found.manifest["files"])  # what is said has times in it
    events = [json.loads(line) for line in (found.folder / logs.EVENTS).read_text().splitlines()]
    [evaluated] = [each for each in events if each.get("event") == "evaluated"]
    assert {"time", "level", "logger", "message"} <= set(evaluated)

    result = found.results["results"]["colour_choice_sw"]
    assert evaluated["results"]["colour_choice_sw"]["acc,none"] == result["acc,none"]
    assert {"acc,none", "acc_stderr,none", "alias"} <= set(result)
    assert {"configs", "versions", "n-shot", "higher_is_better", "n-samples", "config"} <= set(found.results)
    assert found.results["n-samples"]["colour_choice_sw"]["effective"] == 7

    rows = [json.loads(line) for line in (found.folder / "samples_colour_choice_sw.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == [f"doc-{n}" for n in range(7)]
    for n, row in enumerate(rows):
        assert row["source_prompts"] == [documents("en")[n]["question"]]
        assert row["arguments"][0][0] == documents("sw")[n]["question"]
    assert sum(row["acc"] for row in rows) / 7 == pytest.approx(result["acc,none"])

    manifest = found.manifest
    assert manifest["transplant"]["layers"] == [3, 1]
    assert manifest["transplant"]["read"] == ["model.layers.3.mlp"]
    assert manifest["transplant"]["written"] == ["model.layers.1.mlp"]
    assert manifest["counts"] == {"documents": 7, "prompts": 7, "transplants": 7, "promptless": 0}
    assert manifest["checks"]["self_transplant"] == 0.0
    cost = manifest["cost"]
    assert 0 < cost["seconds"] < manifest["timings"]["evaluation_seconds"]
    assert cost["flops"] > cost["tokens"] > 0
    facts = manifest["tasks"]["colour_choice_sw"]
    assert (facts["aligned"], facts["available"], facts["documents"], facts["gold_equal"]) == (10, 10, 7, 10)
    assert facts["available_source"] == 10
    # Each side's fingerprints are of that side: the source's prompts are the questions, three choices each.
    english = [question for row in documents("en")[:7] for question in [row["question"]] * 3]
    assert facts["prompts_sha256"]["source"] == pairing.texts_digest(english)
    swahili = [question for row in documents("sw")[:7] for question in [row["question"]] * 3]
    assert facts["prompts_sha256"]["target"] == pairing.texts_digest(swahili)
    assert facts["docs_sha256"]["source"] == pairing.docs_digest(documents("en")[:7])
    assert facts["docs_sha256"]["target"] == pairing.docs_digest(documents("sw")[:7])
    assert facts["docs_sha256"]["source"] != pairing.docs_digest(documents("en")[:6])
    assert "model.safetensors" in manifest["model"]["files"]
    shown = capsys.readouterr().out
    assert "colour_choice_sw" in shown and "trivial" in shown and str(found.folder) in shown


def test_the_same_config_gives_the_same_bytes(arguments: list[str], tmp_path: Path) -> None:
    arguments = [*arguments, "transplant.layers=[2,0]"]
    run(*arguments)
    first = {path.name: path.read_bytes() for path in only_run(tmp_path).folder.iterdir()}
    run(*arguments, "overwrite=true")
    second = {path.name: path.read_bytes() for path in only_run(tmp_path).folder.iterdir()}
    for content in (first, second):
        for name in logs.FILES:
            del content[name]
        manifest = json.loads(content.pop("manifest.json"))
        del manifest["timings"], manifest["cost"]["seconds"], manifest["files"]["config.yaml"], manifest["sha256"]
        content["manifest"] = json.dumps(manifest).encode()
        del content["config.yaml"]  # says overwrite: true
    assert first == second


def test_a_finished_run_is_found_again(arguments: list[str], tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    run(*arguments, "transplant.layers=[last,first]")
    folder = only_run(tmp_path).folder
    before = (folder / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr(loading, "load", lambda config: pytest.fail("computed anew"))
    # The same pair in other words, another batch size: the same run.
    run(*arguments, "transplant.layers=[-1,0]", "batch_size=2")
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    assert "Already done" in caplog.text


def test_a_damaged_run_is_named_and_done_anew(arguments: list[str], tmp_path: Path, capsys: Any, caplog: Any) -> None:
    run(*arguments)
    folder = only_run(tmp_path).folder
    whole = (folder / "results.json").read_bytes()
    (folder / "results.json").write_text("{}", encoding="utf-8")
    assert cli.main(["summarize", f"runs={folder}"]) == 2
    assert "results.json was changed after its run" in capsys.readouterr().err
    run(*arguments)
    assert "results.json was changed after its run" in caplog.text
    assert only_run(tmp_path).folder == folder and (folder / "results.json").read_bytes() == whole


def test_what_is_there_is_not_used_without_resume(arguments: list[str], tmp_path: Path, capsys: Any) -> None:
    run(*arguments, "resume=false")
    manifest = only_run(tmp_path).folder / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert cli.main(["evaluate", *arguments, "resume=false"]) == 2
    assert "resume=false: " in (said := capsys.readouterr().err) and "holds a finished run" in said
    manifest.unlink()
    assert cli.main(["evaluate", *arguments, "resume=false"]) == 2
    assert "holds parts of an interrupted run" in capsys.readouterr().err
    # The refusal is no failure of that run, after which it would be computed.
    assert cli.main(["evaluate", *arguments, "resume=false"]) == 2
    assert "holds parts of an interrupted run" in capsys.readouterr().err
    run(*arguments, "resume=false", "overwrite=true")
    assert manifest.stat().st_mtime_ns > before


def test_an_unfinished_run_counts_for_nothing(arguments: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    from xtransplant.lm import TransplantLM

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TransplantLM, "loglikelihood", killed)
        assert cli.main(["evaluate", *arguments]) == 130
    [folder] = (tmp_path / "outputs" / "evaluate").glob("tiny-*")
    assert record.load_run(folder) is None
    run(*arguments)
    assert record.load_run(folder) is not None


def test_a_sweep_does_once_what_its_runs_share_and_ends_in_one_table(
    arguments: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    asked: dict[str, list[Any]] = {"from_pretrained": [], "encode": [], "_capture": []}

    def count(owner: Any, name: str) -> None:
        does = getattr(owner, name)

        def counted(*args: Any, **given: Any) -> Any:
            asked[name].append((args[1:], given))
            return does(*args, **given)

        monkeypatch.setattr(owner, name, counted)

    count(AutoModelForCausalLM, "from_pretrained")
    count(PreTrainedTokenizerFast, "encode")
    count(Captures, "_capture")
    monkeypatch.setattr(loading, "_last", None)
    monkeypatch.setattr(captures, "_held", OrderedDict())
    run("-m", *arguments, "tracking=none", "transplant.layers=null,[3,1]", "transplant.component=ffn,attn")
    assert len(asked["from_pretrained"]) <= 1
    texts = list(map(str, asked["encode"]))
    sources = [prompt for (prompts, *_), _ in asked["_capture"] for prompt in prompts]
    for each in (texts, sources):
        assert len(each) == len(set(each)) > 0
    runs = record.find_runs([str(tmp_path / "outputs")])
    # The vanilla model has no component: two of the four jobs are the same run.
    assert {found.manifest["condition"] for found in runs} == {"vanilla", "ffn 3>1", "attn 3>1"}
    capsys.readouterr()
    assert cli.main(["summarize", f"runs=[{tmp_path / 'outputs' / 'evaluate'}]"]) == 0
    table = capsys.readouterr().out
    assert cli.main(["summarize", f"runs=[{tmp_path / 'outputs' / 'evaluate' / '*-sw-*'}]"]) == 0
    assert capsys.readouterr().out == table
    for text in ("vanilla", "ffn 3>1", "attn 3>1", "en-sw", "trivial", "documents"):
        assert text in table


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["task.gold=question"], "the gold label agrees in 0 of 10 documents"),
        (["task.key=label"], "occur more than once"),
        (['task.tasks=["colour_empty_{lang}"]', "transplant.layers=[0,0]"], "have an empty prompt"),
        (["task.num_fewshot=30"], "30"),
    ],
)
def test_faults_of_the_data_show_before_the_model_is_loaded(
    arguments: list[str], given: list[str], said: str, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(loading, "load", lambda config: pytest.fail("the model was loaded"))
    assert cli.main(["evaluate", *arguments, *given]) == 2
    assert said in capsys.readouterr().err


def test_doctor_shows_what_is_read_and_written(checkpoint: Path, capsys: Any) -> None:
    given = ["doctor", "model=hf", f"model.path={checkpoint}", "transplant.component=attn", "transplant.layers=[2,1]"]
    assert cli.main([*given, "source_prompt=Hello there", "target_prompt=Hujambo"]) == 0
    shown = capsys.readouterr().out
    assert "model.layers.2.self_attn: output [1, " in shown and "model.layers.1.self_attn" in shown
    assert "token 'e'" in shown and "token 'o'" in shown and "prefill" in shown
    assert shown.count("ok  ") == 5 and "FAIL" not in shown


def test_doctor_fails_where_the_engine_is_wrong(checkpoint: Path, capsys: Any) -> None:
    # The MLP's gate is no FFN output: attn + ffn do not account for the residual stream.
    named = "model.modules={layers:model.layers,attn:self_attn,ffn:mlp,ffn_branch:self_attn}"
    assert cli.main(["doctor", "model=hf", f"model.path={checkpoint}", named]) == 2
    captured = capsys.readouterr()
    assert "FAIL" in captured.out and "1 of 5 checks failed" in captured.err


@pytest.mark.slow
def test_the_harness_command_line_gives_the_same_answers(arguments: list[str], tasks: Path, tmp_path: Path) -> None:
    run(*arguments, "transplant.layers=[2,1]", "task.num_fewshot=2")
    ours = only_run(tmp_path)
    given: dict[str, Any] = dict(each.split("=", 1) for each in arguments)
    given |= {"transplant.layers": [2, 1], "task.tasks": ["colour_choice_{lang}"], "task.include_path": [str(tasks)]}
    done = subprocess.run(
        [sys.executable, "-m", "xtransplant.cli", "lm-eval", "run", "--model", "xtransplant",
         "--model_args", json.dumps(given), "--tasks", "colour_choice_sw", "--include_path", str(tasks),
         "--num_fewshot", "2", "--log_samples", "--output_path", str(tmp_path / "harness")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = (tmp_path / "harness").rglob("results_*.json")
    theirs = json.loads(results.read_text(encoding="utf-8"))["results"]["colour_choice_sw"]
    assert theirs["acc,none"] == ours.results["results"]["colour_choice_sw"]["acc,none"]
    [samples] = (tmp_path / "harness").rglob("samples_*.jsonl")
    their_rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    our_rows = [json.loads(line) for line in (ours.folder / "samples_colour_choice_sw.jsonl").read_text().splitlines()]
    for mine, other in zip(our_rows, their_rows, strict=True):
        for [[one, _]], [[two, _]] in zip(mine["resps"], other["resps"], strict=True):
            assert float(one) == pytest.approx(float(two), abs=1e-4)
