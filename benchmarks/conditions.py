"""All conditions beside each other: vanilla, the paper's setting, PIM, strategies, fine-tuning, both, and the bounds.

    python benchmarks/conditions.py run      # two hours on two cores; goes on where it was stopped
    python benchmarks/conditions.py page     # docs/results/conditions.md from conditions.csv and conditions-findings.md

`run` is the package's own commands, which the page shows. It ends with docs/results/conditions.csv, which is what
`xtransplant compare format=csv` says of the runs, and with their report.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from xtransplant import charts

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
OUTPUT = "outputs/conditions"

# Tasks, and their documents: of a sample grid, of an unseen and a control grid, of the training, of an evaluation. A
# limit is for each task of a family. Currencies are left out: their long names take as much time as all the rest.
KINDS = ["cldr_language_{lang}", "cldr_continent_{lang}", "cldr_calendar_{lang}"]
TASKS: list[tuple[list[str], dict[str, int]]] = [
    (["task=paper_xnli_mc,paper_xcopa_mc,klar"], {"sample": 24, "bound": 12, "train": 50, "evaluate": 50}),
    (["task=cldr", f"task.tasks={json.dumps(KINDS)}"], {"sample": 8, "bound": 3, "train": 50, "evaluate": 30}),
]
MODELS = "model=smollm2_135m,gemma3_270m"
PAIRS = "language_pair=en-tr,en-zh"
HOW = ["hydra/launcher=joblib", "tracking=none", f"output_dir={OUTPUT}"]
STRATEGIES = ("overall", "mean_logprob")
ADAPTER = f"model.adapter={OUTPUT}/sft/${{model.name}}-${{task.name}}-lora-*"
SELECTIONS = [f"{OUTPUT}/select/{name}-*/selection.json" for name in STRATEGIES]


def commands() -> list[list[str]]:
    """The arguments of the package's commands, in order."""
    lines: list[list[str]] = []
    for task, limit in TASKS:
        grid = ["grid", "-m", MODELS, *task, PAIRS]
        lines += [
            [*grid, "split=sample", f"limit={limit['sample']}", *HOW],
            [*grid, "split=unseen", f"limit={limit['bound']}", *HOW],
            [*grid, "split=unseen", f"limit={limit['bound']}", "transplant.control=random_document", *HOW],
        ]
    sample = f"grid={OUTPUT}/grid/*-sample-*"
    lines += [["select", sample, f"strategy={name}", f"output_dir={OUTPUT}"] for name in STRATEGIES]
    for task, limit in TASKS:
        training = [
            "data=task",
            "data.languages=[en,tr,zh]",
            f"data.limit={limit['train']}",
            "steps=30",
            "eval_steps=10",
        ]
        lines.append(["sft", "-m", MODELS, *task, *training, *HOW])
    for task, limit in TASKS:
        evaluate = ["evaluate", "-m", MODELS, *task, PAIRS, "split=unseen", f"limit={limit['evaluate']}"]
        lines += [
            [*evaluate, "transplant=vanilla,paper_understanding", *HOW],
            [*evaluate, "prompt=both", *HOW],
            [*evaluate, f"selection={','.join(SELECTIONS)}", *HOW],
            [*evaluate, ADAPTER, "transplant=vanilla,paper_understanding", *HOW],
            [*evaluate, ADAPTER, f"selection={SELECTIONS[0]}", "selection_of_base=true", *HOW],
        ]
    runs = "runs=[" + ",".join(f"{OUTPUT}/{job}" for job in ("evaluate", "grid", "sft")) + "]"
    table = ["format=csv", "output=docs/results/conditions.csv", "overwrite=true"]
    lines += [
        ["compare", runs, "against=sft", *table],
        ["report", runs, f"output={OUTPUT}/report.html", "overwrite=true"],
    ]
    return lines


def page(records: list[dict[str, str]]) -> tuple[str, str]:
    """The results page, and its picture, from the lines of conditions.csv."""
    records = [
        each | {"condition": _named(each["condition"])}
        for each in records
        if each["metric"] == "acc" and each["split"] == "unseen"
    ]
    findings = (RESULTS / "conditions-findings.md").read_text(encoding="utf-8").strip()
    done = "\n".join(shlex.join(["xtransplant", *line]) for line in commands())
    parts = [INTRODUCTION.format(commands=done, findings=findings)]
    for group in dict.fromkeys((each["model"], each["task"]) for each in records):
        mine = [each for each in records if (each["model"], each["task"]) == group]
        parts.append(f"## {', '.join(group)}\n\n{_table(mine)}")
    return "\n\n".join(parts) + "\n", charts.differences(records)


def _named(condition: str) -> str:
    """A condition's name for all models and tasks."""
    for pattern, name in (
        (r"attn (17|29)>0", "paper's setting"),
        (r"vanilla \(both prompts\)", "PIM"),
        (r"SFT \([^)]*\)", "SFT"),
        (r" \(chosen on base\)", ""),
        (r"upper bound \(ffn\)", "upper bound"),
        (r"control random_document \(ffn\)", "its control"),
    ):
        condition = re.sub(pattern, name, condition)
    return condition


INTRODUCTION = """# All conditions beside each other

Does a strategy that was chosen offline help, does it beat multilingual fine-tuning, and at what cost? Two small models,
three benchmarks and the embedded CLDR tasks, from English to Turkish and to Chinese.

![Difference of each condition to the untouched model, over both language pairs, 95 % intervals](conditions.svg)

{findings}

## How it was made

```bash
{commands}
```

All of it: `python benchmarks/conditions.py run`, then `page`; XNLI, XCOPA and KLAR need the data folder, as the README
says. Every number is in [conditions.csv](conditions.csv); its columns are those of [comparing](../compare.md).

`paper's setting`: the attention's output of the last layer into the first. `PIM`: both prompts in one. `SFT`: LoRA
on 50 sample documents in three languages. `overall`, `mean_logprob`: chosen on the documents of the sample grids, by
the untouched model, with `SFT` too. `upper bound`: the best of all cells for each document; `its control`: the same
with another document's vectors.

Accuracy on unseen documents, and the difference to the untouched model in points of 0.01; over both pairs (the mean
over documents) with a paired bootstrap interval, and p of sign flips of questions, not corrected for the number of
conditions. `against SFT`: the same against the fine-tuned model. `before`: what a condition takes before the first
document is evaluated, its grids or its training; `a document`: floating-point operations of one. Oracles read the
labels and stand on fewer documents; in brackets the untouched model's score on these."""

_HEADER = [
    *("condition", "documents", "en-tr", "en-zh", "difference over both", "p", "against SFT", "reading"),
    *("before, 1e12 flops", "a document, 1e9 flops"),
]


def _table(records: list[dict[str, str]]) -> str:
    lines = []
    for name in dict.fromkeys(each["condition"] for each in records):
        mine = [each for each in records if each["condition"] == name and each["against"] in ("", "vanilla")]
        whole = next(each for each in mine if each["pooled"] == "micro")
        oracle = whole["kind"] in ("upper_bound", "chance")
        singles = {each["pair"]: each for each in mine if each["pair"]}
        sft = [each for each in records if each["condition"] == name and each["against"] not in ("", "vanilla")]
        against = next((each for each in sft if each["pooled"] == "micro" and not oracle), None)
        flops, documents = float(whole["flops"] or 0), int(whole["documents"])
        lines.append(
            [
                name,
                whole["documents"],
                *(_score(singles.get(pair), oracle) for pair in ("en-tr", "en-zh")),
                _difference(whole),
                _p(whole["p"]),
                "" if against is None else f"{_difference(against)}, p {_p(against['p'])}",
                _reading(whole),
                f"{float(whole['training_flops']) / 1e12:.1f}" if float(whole["training_flops"] or 0) else "",
                f"{flops / documents / 1e9:.0f}" if flops else "",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in [_HEADER, ["---"] * len(_HEADER), *lines])


def _score(record: dict[str, str] | None, oracle: bool) -> str:
    if record is None:
        return ""
    score = f"{float(record['score']):.3f}"
    if oracle:
        return f"{score} ({float(record['vanilla']):.3f})"
    return score if not record["difference"] else f"{score} ({100 * float(record['difference']):+.1f})"


def _difference(record: dict[str, str]) -> str:
    if not record["difference"]:
        return ""
    low, high = record["low"], record["high"]
    edges = f" ({100 * float(low):+.1f} to {100 * float(high):+.1f})" if low and high else ""
    return f"{100 * float(record['difference']):+.1f}{edges}"


def _p(p: str) -> str:
    return f"{float(p):.2g}" if p else ""


def _reading(record: dict[str, str]) -> str:
    if not record["could_be_chance"]:
        return ""
    if record["kind"] == "chance":
        return "control"
    chance = record["could_be_chance"] == "true"
    if record["kind"] == "upper_bound":
        return "oracle, could be chance" if chance else "oracle, beyond its control"
    return "could be chance" if chance else "better" if float(record["difference"]) > 0 else "worse"


def records() -> list[dict[str, str]]:
    with (RESULTS / "conditions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main(arguments: list[Any]) -> None:
    if arguments == ["page"]:
        text, picture = page(records())
        (RESULTS / "conditions.md").write_text(text, encoding="utf-8")
        (RESULTS / "conditions.svg").write_text(picture, encoding="utf-8")
        return
    if arguments != ["run"]:
        sys.exit(__doc__)
    for line in commands():
        print(shlex.join(["xtransplant", *line]), flush=True)
        subprocess.run([sys.executable, "-m", "xtransplant.cli", *line], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
