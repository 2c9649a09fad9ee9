"""The tables that a person reads."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from tests.unit.runs import made_run
from xtransplant.overview import Unfinished
from xtransplant.record import Run
from xtransplant.tables import run_table, summary


def run(**accuracy: tuple[float, int]) -> Run:
    """A run of tasks with (accuracy, documents) each."""
    results = {
        name: {"alias": name, "acc,none": value, "acc_stderr,none": 0.05, "acc_norm,none": 0.9, "f1,strict": 0.5}
        for name, (value, _) in accuracy.items()
    }
    tasks = {name: {"documents": n, "trivial_baseline": 0.25} for name, (_, n) in accuracy.items()}
    return Run(Path("x"), {"tasks": tasks}, {"results": results})


def test_a_run_shows_every_metric_with_error_baseline_and_documents() -> None:
    lines = run_table(run(red=(0.5, 40))).splitlines()
    assert lines[2].split() == ["red", "acc", "0.500", "±", "0.050", "0.250", "40"]
    assert lines[3].split() == ["red", "acc_norm", "0.900", "-", "40"]
    assert lines[4].split() == ["red", "f1", "(strict)", "0.500", "-", "40"]


def test_of_a_tasks_language_the_documents_are_those_that_were_judged() -> None:
    found = run(red=(0.5, 40))
    found.results["results"]["red"] |= {"language_consistency,none": 0.9, "language_judged,none": 0.25}
    lines = [line.split() for line in run_table(found).splitlines()]
    assert ["language_consistency", "0.900", "-", "10"] in [line[1:] for line in lines]
    assert ["language_judged", "0.250", "-", "40"] in [line[1:] for line in lines]


VANILLA = [1, 0, 1, 1, 0, 1, 1, 1, 0, 1]
BETTER = [1, 1, 1, 1, 1, 1, 1, 1, 0, 1]
WORSE = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]


def three_languages(place: Path) -> list[Run]:
    return [
        made_run(place, "vanilla", "en-de", red=VANILLA),
        made_run(place, "ffn 3>1", "en-de", red=BETTER),
        made_run(place, "vanilla", "en-sw", red=VANILLA),
        made_run(place, "ffn 3>1", "en-sw", red=WORSE),
        made_run(place, "vanilla", "en-tr", red=VANILLA),
    ]


def test_a_summary_in_a_terminal(tmp_path: Path) -> None:
    lines = summary(three_languages(tmp_path)).splitlines()
    assert lines[0] == "tiny, colour, unseen: acc"
    table = [line.split() for line in lines[2:10]]
    assert table[0] == ["pair", "docs", "trivial", "vanilla", "ffn", "3>1"]
    # 0.7 of ten documents: the standard error is the root of 0.21 / 9.
    assert table[2][:7] == ["en-de", "10", "0.250", "0.700", "±.153", "0.900", "+0.200"]
    assert table[3][:7] == ["en-sw", "10", "0.250", "0.700", "±.153", "0.100", "-0.600"]
    assert table[4] == ["en-tr", "10", "0.250", "0.700", "±.153", "-"]
    assert [line[:4] + line[5:7] for line in table[6:8]] == [
        ["micro", "20", "0.250", "0.700", "0.500", "-0.200"],
        ["macro", "20", "0.250", "0.700", "0.500", "-0.200"],
    ]
    assert re.fullmatch(r"\[-\.\d+ \+\.\d+\]", " ".join(table[2][7:]))
    text = "\n".join(lines)
    assert "over the 2 of 3 language pairs that have all conditions, without en-tr." in text
    assert "Worse than vanilla: 1 of 2 comparisons by acc\n" in text
    worst = next(line.split() for line in lines if line.startswith("en-sw  ffn 3>1"))
    # Six documents worse, none better; of two comparisons the smaller p counts twice.
    assert worst[:6] == ["en-sw", "ffn", "3>1", "10", "0.700", "0.100"]
    assert (worst[6], *worst[-2:]) == ("-0.600", "0.031", "0.062")


def test_four_conditions_fit_a_terminal_and_more_are_turned(tmp_path: Path) -> None:
    pairs = ["en-de", "en-sw", "en-tr"]
    few = [made_run(tmp_path / "few", name, pair, red=VANILLA if name == "vanilla" else WORSE)
           for name in ("vanilla", "ffn 3>1", "attn 17>0", "overall") for pair in pairs]  # fmt: skip
    text = summary(few)
    assert max(map(len, text.splitlines())) <= 120
    assert text.splitlines()[2].split()[0] == "pair"

    many = [made_run(tmp_path / "many", name, f"en-{target}", red=VANILLA if name == "vanilla" else WORSE)
            for name in ("vanilla", *(f"ffn {n}>1" for n in range(11)))
            for target in ("de", "sw", "tr", "zh", "hi", "id", "fr", "es", "it", "ta", "th", "vi")]  # fmt: skip
    lines = summary(many).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[2].split()[:3] == ["en-de", "en-es", "en-fr"]
    by_name = {" ".join(line.split()[:2]): line for line in lines[4:18]}
    # Layers in the order of their numbers; a star where the interval is without 0.
    assert [name for name in by_name if name.startswith("ffn")] == [f"ffn {n}>1" for n in range(11)]
    assert by_name["ffn 10>1"].split()[2:4] == ["-0.600*", "-0.600*"]
    assert next(line.split()[:2] for line in lines if line.startswith("vanilla")) == ["vanilla", "0.700"]
    assert sum(line.startswith("ffn 10>1") for line in lines) >= 2  # as many tables as the languages need
    assert "the worst 10 of them below" in "\n".join(lines)


def test_what_is_missing_says_why(tmp_path: Path) -> None:
    runs = three_languages(tmp_path)
    args = runs[1].results["config"]["model_args"]
    facts = {"model_name": "tiny", "task_name": "colour", "split": "unseen", "language_pair": "en-tr"}
    failed = Unfinished(
        tmp_path / "a", "failed", "Too little\nmemory.", {**facts, "condition": "ffn 3>1", "model_args": args}
    )
    lost = Unfinished(tmp_path / "tiny-colour-en-xx", "not finished")
    lines = summary(runs, unfinished=[failed, lost]).splitlines()
    assert lines[6].split()[-1] == "failed"
    assert "en-tr, ffn 3>1: failed: Too little memory." in lines
    assert "tiny-colour-en-xx: not finished" in lines


def test_rates_beside_the_score_are_shown_where_a_run_has_them(tmp_path: Path) -> None:
    vanilla = made_run(tmp_path, "vanilla", red=[1] * 10, blue=[0] * 30)
    moved = made_run(tmp_path, "ffn 3>1", red=[1] * 10, blue=[1] * 30)
    plain = summary([vanilla, moved])
    assert "unparsed" not in plain and "language_consistency" not in plain
    vanilla.results["results"]["red_sw"] |= {"unparsed,none": 1.0, "unparsed_stderr,none": 0.0}
    vanilla.results["results"]["blue_sw"] |= {"unparsed,none": 0.2}
    # Judged: 0.5 * 10 + 0.1 * 30 of 40; of these 0.4 * 5 + 1 * 3 are in the target language.
    judged = {"red_sw": (0.5, 0.4), "blue_sw": (0.1, 1.0)}
    for name, (share, consistency) in judged.items():
        moved.results["results"][name] |= {"language_judged,none": share, "language_consistency,none": consistency}
        vanilla.results["results"][name] |= {"language_judged,none": 0.0}
    lines = summary([vanilla, moved]).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("unparsed "))
    # (1 * 10 + 0.2 * 30) / 40
    assert [lines[at].split(), lines[at + 2].split()] == [
        ["unparsed", "vanilla", "ffn", "3>1"],
        ["en-sw", "0.400", "-"],
    ]
    at = next(n for n, line in enumerate(lines) if line.startswith("language_consistency "))
    assert lines[at + 2].split() == ["en-sw", "-", "of", "0%", "0.625", "of", "20%"]
    assert any(line.startswith("unparsed: share of answers") for line in lines)


def test_metrics_of_errors_and_none_that_got_worse(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path, name, metric="wer", higher_is_better=False, red=scores)
        for name, scores in (("vanilla", [0.5, 0.5]), ("ffn 2>1", [0.25, 0.25]))
    ]
    text = summary(runs)
    assert text.startswith("tiny, colour, unseen: wer (lower is better)\n")
    assert text.endswith("None of 1 comparison by wer is worse than vanilla.")


def test_csv_has_all_digits(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, "vanilla", red=[0, 1, 1]), made_run(tmp_path, "ffn 3>1", red=[0, 0, 1])]
    vanilla, moved = csv.DictReader(io.StringIO(summary(runs, "csv")))
    assert (vanilla["condition"], vanilla["score"], vanilla["difference"]) == ("vanilla", repr(2 / 3), "")
    assert (moved["pair"], moved["kind"], moved["documents"], moved["higher_is_better"]) == (
        "en-sw",
        "pair",
        "3",
        "true",
    )
    assert (moved["vanilla"], moved["difference"], moved["p"]) == (repr(2 / 3), repr(1 / 3 - 2 / 3), "1.0")


def test_markdown_tables_have_as_many_cells_in_every_line(tmp_path: Path) -> None:
    runs = three_languages(tmp_path)
    runs[1].manifest["condition"] = runs[3].manifest["condition"] = "a|b <c>"
    text = summary(runs, "markdown")
    assert text.startswith(
        "### tiny, colour, unseen: acc\n\n| pair | docs | trivial | vanilla | a\\|b &lt;c> |\n| --- |"
    )
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 2
    for each in tables:
        lines = each.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert set(lines[1]) <= set("| -")


def test_latex_is_balanced_and_escaped(tmp_path: Path) -> None:
    runs = three_languages(tmp_path)
    runs[1].manifest["condition"] = runs[3].manifest["condition"] = r"100% & {c}_\^~ #1"
    text = summary(runs, "latex")
    for environment in ("table", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 2
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    assert r"100\% \& \{c\}\_\textbackslash{}\textasciicircum{}\textasciitilde{} \#1" in text
    for columns, body in re.findall(r"\\begin{tabular}{(l+)}(.*?)\\end{tabular}", text, flags=re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows and all(len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in rows)
    # What is left once commands, escapes and mathematics are gone is no special character.
    rest = re.sub(r"\\[a-zA-Z]+|\\[&%$#_{}\\]|\$[+-]\$|\$\\pm\$", "", text)
    assert not set("$_^~<>|") & set(rest)
    assert r"0.100 $-$0.600 [$-$." in text and r"$\pm$.153" in text
    assert text.isascii()


@pytest.mark.parametrize("form", ["text", "csv", "markdown", "latex"])
def test_no_runs(form: str) -> None:
    assert summary([], form) in ("", "status", r"% Needs \usepackage{booktabs}.")
