"""The study: every strategy on unseen documents beside upper bounds and chance, a piece for each model, task and pair.

    python benchmarks/study.py run [pieces=<part of a name>] [minutes=60]   # computes pieces that have no result yet
    python benchmarks/study.py page                     # docs/results/README.md from the results and findings.md there

A piece is five commands of the package (printed as they run): grids of both components on sample and unseen documents,
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

import numpy as np

from xtransplant import charts, cli, stats

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


def commands(piece: tuple[str, str, str], output: Path) -> list[list[str]]:
    """The arguments of the package's commands that make a piece."""
    model, task, pair = piece
    sample, unseen, control = SIZES.get(task, OTHER_SIZE)
    place = output / name_of(piece)
    common = [f"model={model}", f"task={task}", f"language_pair={pair}", "transplant.component=[ffn,attn]"]
    if task in KINDS:
        common.append(f"task.tasks={json.dumps(KINDS[task])}")
    grids = {
        "sample": [f"limit={sample}", "split=sample"],
        "unseen": [f"limit={unseen}", "split=unseen"],
        "random_document": [f"limit={control}", "split=sample", "transplant.control=random_document"],
        "noise": [f"limit={control}", "split=sample", "transplant.control=noise"],
    }
    controls = ",".join(f"{place / name}" for name in ("random_document", "noise"))
    inputs = [f"grid={place / 'sample'}", f"unseen={place / 'unseen'}"]
    return [
        *(["grid", *common, *own, f"output_dir={place / folder}"] for folder, own in grids.items()),
        ["strategies", *inputs, f"controls=[{controls}]", f"output_dir={place}"],
    ]


def run(piece: tuple[str, str, str]) -> None:
    for arguments in commands(piece, OUTPUT):
        print(shlex.join(["xtransplant", *arguments]), flush=True)
        if cli.main(arguments) != 0:
            sys.exit(f"failed: xtransplant {shlex.join(arguments)}")
    made = max((OUTPUT / name_of(piece)).glob("strategies/*/strategies.json"), key=lambda path: path.stat().st_mtime)
    [found] = json.loads(made.read_text(encoding="utf-8"))
    for row in found["rows"]:
        # Which cells a rule looks at is in the selection; a result needs the few.
        row["cells"] = row["cells"] if row.get("cells") and len(row["cells"]) <= 3 else None
    kept = ("model_name", "task_name", "language_pair", "split", "control", "metrics", "num_layers", "trivial_baseline")
    result = {"piece": piece, "grid": {name: found["grid"][name] for name in kept}, "rows": found["rows"]}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name_of(piece)}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def page() -> tuple[str, str]:
    """The results page, and its picture."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    found.sort(key=lambda result: PIECES.index(tuple(result["piece"])))
    findings = (RESULTS / "findings.md").read_text(encoding="utf-8").strip()
    parts = [INTRODUCTION.format(pieces=len(found), commands=_commands(found[0]), findings=findings)]
    missing = [name_of(piece) for piece in PIECES if list(piece) not in [result["piece"] for result in found]]
    if missing:
        parts.append(f"Still to be computed, {len(missing)} pieces: {', '.join(missing)}.")
    parts += [
        "## All pieces together\n\n" + ALL_PIECES + "\n\n" + _over_all(found),
        "## Is the upper bound more than chance?\n\n" + BOUNDS + "\n\n" + _bounds(found),
    ]
    for model, task in dict.fromkeys(tuple(result["piece"][:2]) for result in found):
        mine = [result for result in found if result["piece"][:2] == [model, task]]
        parts.append(f"## {model}, {task}\n\n" + _scores(mine))
    return "\n\n".join(parts) + "\n", charts.gains([(result["grid"], result["rows"]) for result in found])


INTRODUCTION = """# Every strategy on unseen documents

Each strategy chooses on sample documents and is scored on others, beside the upper bound over all layer pairs (an
oracle that reads the labels) and the same bound for vectors that know nothing of the document. {pieces} pieces, a piece
being a model, a task and a language pair (`source-target`: the prompt is read in the first language and answered in the
second); `ffn` and `attn` cells together. About 50 sample and 100 unseen documents, controls on about 20: the intervals
are wide, and a difference of one piece says little. Made by

```bash
python benchmarks/study.py run    # hours; goes on where it was stopped
python benchmarks/study.py page
```

where a piece is these commands (XNLI, XCOPA and KLAR need the data folder, as the README says):

```bash
{commands}
```

![Gain of each strategy on unseen documents, a dot for each piece](gains.svg)

{findings}"""

ALL_PIECES = """Means over pieces, each weighing the same. Pieces of one task share their documents in several
languages, so they are not independent and no interval is given over them. Up and down: in how many pieces the strategy
gains and loses. q: the smallest of McNemar's p over pieces, with the false discovery rate controlled over all pieces
and strategies. Gap closed: the share of the way from vanilla to the upper bound, over all pieces' documents."""

BOUNDS = """Bounds over the same cells on the same documents, the controls': the real source prompt's vectors, another
document's, and noise of the same length. `guesses`: what as many random guesses as cells would reach. A bound over
hundreds of cells is often full whatever is transplanted; `mean cell`, the mean score of the single cells, is not."""


def _commands(result: dict[str, Any]) -> str:
    return "\n".join(
        shlex.join(["xtransplant", *line]) for line in commands(tuple(result["piece"]), Path("outputs", "study"))
    )


def _over_all(found: list[dict[str, Any]]) -> str:
    named = list(dict.fromkeys(row["name"] for result in found for row in result["rows"] if row["kind"] != "control"))
    tests = [
        (row["name"], row["p"])
        for result in found
        for row in result["rows"]
        if row["kind"] == "strategy" and row["p"] is not None
    ]
    adjusted = stats.false_discovery(np.array([p for _, p in tests]))
    lines = []
    for name in named:
        rows = [row for result in found for row in result["rows"] if row["name"] == name and row["score"] is not None]
        gains = [row["difference"] for row in rows if row["difference"] is not None]
        on_sample = [row["sample_score"] for row in rows if row["sample_score"] is not None]
        closed = [
            (row["documents"] * row["difference"], row["documents"] * _named(result, "upper bound")["difference"])
            for result in found
            if (row := _named(result, name))["difference"] is not None
        ]
        smallest = [q for (tested, _), q in zip(tests, adjusted, strict=True) if tested == name]
        lines.append(
            [
                name,
                str(len(rows)),
                f"{_mean(on_sample):.3f}" if on_sample else "-",
                f"{_mean([row['score'] for row in rows]):.3f}",
                f"{_mean(gains):+.3f}" if gains else "-",
                f"{sum(gain > 1e-9 for gain in gains)} / {sum(gain < -1e-9 for gain in gains)}" if gains else "-",
                f"{min(smallest):.2g}" if smallest else "-",
                f"{sum(gain for gain, _ in closed) / sum(gap for _, gap in closed):.2f}" if closed else "-",
            ]
        )
    header = ["", "pieces", "on sample", "unseen", "gain", "up / down", "smallest q", "gap closed"]
    return _markdown(header, lines)


def _bounds(found: list[dict[str, Any]]) -> str:
    lines = []
    for result in found:
        controls = {row["name"].rpartition(" ")[2]: row for row in result["rows"] if row["kind"] == "control"}
        line = [" ".join(result["piece"])]
        some = next(iter(controls.values()))
        line += [str(some["documents"]), f"{some['score'] - some['difference']:.3f}", f"{some['reference']:.3f}"]
        for name in ("random_document", "noise"):
            row = controls[name]
            interval = f"{row['above_low']:+.2f} to {row['above_high']:+.2f}, p {row['above_p']:.2g}"
            line.append(f"{row['score']:.3f} ({row['above']:+.2f}; {interval})")
        means = [some["reference_cell_mean"], *(controls[name]["cell_mean"] for name in ("random_document", "noise"))]
        lines.append([*line, f"{some['chance']:.3f}", " / ".join(f"{mean:.3f}" for mean in means)])
    header = [
        "piece",
        "documents",
        "vanilla",
        "real",
        "random document (real better by; 95 %, p)",
        "noise (likewise)",
        "guesses",
        "mean cell: real / random document / noise",
    ]
    return _markdown(header, lines)


def _scores(found: list[dict[str, Any]]) -> str:
    """A row for each strategy and bound, a column for each language pair: scores, then shares of the gap."""
    names = [row["name"] for row in found[0]["rows"] if row["kind"] != "control"]
    strategies = [row["name"] for row in found[0]["rows"] if row["kind"] == "strategy"]
    pairs = [result["piece"][2] for result in found]
    scores = [[name, *(_score(_named(result, name)) for result in found)] for name in names]
    shares = [[name, *(_share(_named(result, name)) for result in found)] for name in strategies]
    documents = sorted({_named(result, "vanilla")["documents"] for result in found})
    trivial = sorted(result["grid"]["trivial_baseline"] for result in found)
    counted = f"{' or '.join(map(str, documents))} unseen documents"
    return "\n\n".join(
        [
            f"{counted}; trivial baseline {trivial[0]:.3f} to {trivial[-1]:.3f}.",
            _markdown(["score (gain; * its 95 % interval is without 0)", *pairs], scores),
            _markdown(["gap closed (95 %)", *pairs], shares),
        ]
    )


def _named(result: dict[str, Any], name: str) -> dict[str, Any]:
    [row] = [row for row in result["rows"] if row["name"] == name]
    found: dict[str, Any] = row
    return found


def _share(row: dict[str, Any]) -> str:
    if row["gap_closed"] is None or row["gap_low"] is None:
        return "-" if row["gap_closed"] is None else f"{row['gap_closed']:.2f}"
    return f"{row['gap_closed']:.2f} ({row['gap_low']:.2f} to {row['gap_high']:.2f})"


def _score(row: dict[str, Any]) -> str:
    if row["score"] is None:
        return "-"
    if row["difference"] is None:
        return f"{row['score']:.3f}"
    # An oracle chose on these very documents.
    sure = "*" if row["kind"] == "strategy" and (row["low"] > 0 or row["high"] < 0) else ""
    return f"{row['score']:.3f} ({row['difference']:+.3f}{sure})"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def main(arguments: list[str]) -> None:
    given = dict(argument.partition("=")[::2] for argument in arguments[1:])
    if arguments[:1] == ["page"]:
        text, picture = page()
        (RESULTS / "README.md").write_text(text, encoding="utf-8")
        (RESULTS / "gains.svg").write_text(picture, encoding="utf-8")
        return
    until = time.monotonic() + 60 * float(given.get("minutes", "60"))
    for piece in PIECES:
        if given.get("pieces", "") in name_of(piece) and not (RESULTS / f"{name_of(piece)}.json").exists():
            if time.monotonic() > until:
                break
            run(piece)


if __name__ == "__main__":
    main(sys.argv[1:])
