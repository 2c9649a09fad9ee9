"""The study: every strategy on unseen documents beside upper bounds and chance, a piece for each model, task and pair.

    python benchmarks/study.py run [pieces=<part of a name>] [minutes=60]   # computes pieces that have no result yet
    python benchmarks/study.py page                                         # docs/results/README.md from the results

A piece is six commands of the package (printed as they run): grids of both components on sample and unseen documents,
two control grids on part of the sample, and `xtransplant strategies`. Its result, a small JSON file in docs/results/,
is kept; the grids lie in outputs/study/ and go on where they were stopped.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from xtransplant import cli, tables

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
OUTPUT = ROOT / "outputs" / "study"
# Sample, unseen and control documents: about 50, 100 and 20. The limit is for each task of a family.
SIZES = {"cldr": (17, 33, 7)}
OTHER_SIZE = (50, 100, 20)
# Currencies are left out: their long names take as much time as the other three kinds together.
KINDS = {"cldr": ["cldr_language_{lang}", "cldr_continent_{lang}", "cldr_calendar_{lang}"]}
PIECES = [
    *(("gemma3_270m", "paper_xnli_mc", f"en-{code}") for code in ("sw", "tr", "zh")),
    *(("gemma3_270m", "klar", f"en-{code}") for code in ("es", "fr", "tr")),
    *(
        ("gemma3_270m", "cldr", pair)
        for code in ("de", "hi", "id", "sw", "tr", "zh")
        for pair in (f"en-{code}", f"{code}-en")
    ),
    *(("gemma3_270m", "paper_xcopa_mc", f"en-{code}") for code in ("sw", "tr", "zh")),
    *(("smollm2_135m", task, pair) for task, pair in (("cldr", "en-de"), ("paper_xnli_mc", "en-sw"))),
]


def name_of(piece: tuple[str, str, str]) -> str:
    return "-".join(piece)


def run(piece: tuple[str, str, str]) -> None:
    model, task, pair = piece
    sample, unseen, control = SIZES.get(task, OTHER_SIZE)
    place = OUTPUT / name_of(piece)
    common = [f"model={model}", f"task={task}", f"language_pair={pair}", "transplant.component=[ffn,attn]"]
    if task in KINDS:
        common.append(f"task.tasks={json.dumps(KINDS[task])}")
    grids = {
        "sample": [f"limit={sample}", "split=sample"],
        "unseen": [f"limit={unseen}", "split=unseen"],
        "random_document": [f"limit={control}", "split=sample", "transplant.control=random_document"],
        "noise": [f"limit={control}", "split=sample", "transplant.control=noise"],
    }
    for folder, own in grids.items():
        command("grid", *common, *own, f"output_dir={place / folder}")
    controls = ",".join(str(place / name) for name in ("random_document", "noise"))
    inputs = [f"grid={place / 'sample'}", f"unseen={place / 'unseen'}", f"controls=[{controls}]"]
    command("strategies", *inputs, f"output_dir={place}")
    [made] = sorted(place.glob("strategies/*/strategies.json"))[-1:]
    [found] = json.loads(made.read_text(encoding="utf-8"))
    for row in found["rows"]:
        # Which cells a rule looks at is in the selection; a result needs the few.
        row["cells"] = row["cells"] if row.get("cells") and len(row["cells"]) <= 3 else None
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = {"piece": list(piece), "documents": [sample, unseen, control], "rows": found["rows"]}
    (RESULTS / f"{name_of(piece)}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def command(*arguments: str) -> None:
    print(shlex.join(["xtransplant", *arguments]), flush=True)
    if cli.main(arguments) != 0:
        sys.exit(f"failed: xtransplant {shlex.join(arguments)}")


def page() -> str:
    """A table for each model and task: a row for each strategy, a column for each language pair."""
    found: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        model, task, pair = result["piece"]
        found.setdefault((model, task), {})[pair] = result["rows"]
    parts = []
    for (model, task), pairs in found.items():
        names = list(dict.fromkeys(row["name"] for rows in pairs.values() for row in rows))
        lines = []
        for name in names:
            line = [name]
            for rows in pairs.values():
                row = next((each for each in rows if each["name"] == name), None)
                line.append("-" if row is None or row["score"] is None else _cell(row))
            lines.append(line)
        parts.append(f"## {model}, {task}\n\n```text\n{tables.table(['', *pairs], lines)}\n```")
    return "\n\n".join(parts) + "\n"


def _cell(row: dict[str, Any]) -> str:
    if row.get("reference") is not None:
        return f"{row['score']:.3f} (real {row['reference']:.3f})"
    gain = row.get("difference")
    return f"{row['score']:.3f}" + ("" if gain is None else f" ({gain:+.3f})")


def main(arguments: list[str]) -> None:
    given = dict(argument.partition("=")[::2] for argument in arguments[1:])
    if arguments[:1] == ["page"]:
        print(page())
        return
    until = time.monotonic() + 60 * float(given.get("minutes", "60"))
    for piece in PIECES:
        if given.get("pieces", "") in name_of(piece) and not (RESULTS / f"{name_of(piece)}.json").exists():
            if time.monotonic() > until:
                break
            run(piece)


if __name__ == "__main__":
    main(sys.argv[1:])
