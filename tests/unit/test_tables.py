"""The tables that a person reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xtransplant.record import Run
from xtransplant.tables import run_table, summary_table


def run(condition: str, pair: str = "en-sw", shots: int = 0, **accuracy: tuple[float, int]) -> Run:
    """A run of tasks with (accuracy, documents) each."""
    results = {
        name: {"alias": name, "acc,none": value, "acc_stderr,none": 0.05, "acc_norm,none": 0.9, "f1,strict": 0.5}
        for name, (value, _) in accuracy.items()
    }
    manifest: dict[str, Any] = {
        "model_name": "tiny", "task_name": "colour", "language_pair": pair, "split": "unseen", "condition": condition,
        "tasks": {
            name: {"documents": n, "trivial_baseline": 0.25, "keys_sha256": str(n)} for name, (_, n) in accuracy.items()
        },
    }  # fmt: skip
    given = {"transplant": condition, "language_pair": pair, "shots": shots}
    return Run(Path("x"), manifest, {"results": results, "config": {"model_args": given}})


def test_a_run_shows_every_metric_with_error_baseline_and_documents() -> None:
    lines = run_table(run("vanilla", red=(0.5, 40))).splitlines()
    assert lines[2].split() == ["red", "acc", "0.500", "±", "0.050", "0.250", "40"]
    assert lines[3].split() == ["red", "acc_norm", "0.900", "-", "40"]
    assert lines[4].split() == ["red", "f1", "(strict)", "0.500", "-", "40"]


def test_a_summary_pools_documents_and_compares_with_vanilla() -> None:
    runs = [
        run("ffn 3>1", red=(0.5, 10), blue=(0.8, 30)),
        run("vanilla", red=(0.4, 10), blue=(0.4, 30)),
        run("vanilla", pair="en-de", red=(0.7, 10), blue=(0.7, 30)),
    ]
    header, _, german, swahili, *_ = summary_table(runs).splitlines()
    assert header.split() == ["model", "task", "pair", "split", "vanilla", "ffn", "3>1", "trivial", "documents"]
    # (0.5 * 10 + 0.8 * 30) / 40, and what is missing is shown as missing.
    assert swahili.split() == ["tiny", "colour", "en-sw", "unseen", "0.400", "0.725", "(+0.325)", "0.250", "40"]
    assert german.split() == ["tiny", "colour", "en-de", "unseen", "0.700", "-", "0.250", "40"]


def test_of_a_tasks_language_the_documents_are_those_that_were_judged() -> None:
    found = run("vanilla", red=(0.5, 40))
    found.results["results"]["red"] |= {"language_consistency,none": 0.9, "language_judged,none": 0.25}
    lines = [line.split() for line in run_table(found).splitlines()]
    assert ["language_consistency", "0.900", "-", "10"] in [line[1:] for line in lines]
    assert ["language_judged", "0.250", "-", "40"] in [line[1:] for line in lines]


def test_rates_beside_the_accuracy_are_shown_where_a_run_has_them() -> None:
    plain, vanilla, moved = (
        run("vanilla", pair="en-de", red=(0.7, 40)),
        *(run(condition, red=(0.5, 10), blue=(0.8, 30)) for condition in ("vanilla", "ffn 3>1")),
    )
    assert not {"unparsed", "language_consistency"} & set(summary_table([plain]).split())
    vanilla.results["results"]["red"] |= {"unparsed,none": 1.0, "unparsed_stderr,none": 0.0}
    vanilla.results["results"]["blue"] |= {"unparsed,none": 0.2}
    header, _, german, swahili, *legend = summary_table([plain, vanilla, moved]).splitlines()
    assert header.split()[-3:] == ["trivial", "unparsed", "documents"]
    # (1 * 10 + 0.2 * 30) / 40; one value for each condition.
    assert swahili.split()[-5:] == ["0.250", "0.400", "/", "-", "40"]
    assert german.split()[-5:] == ["0.250", "-", "/", "-", "40"]
    assert legend[-1].startswith("unparsed: share of answers")

    # Judged: 0.5 * 10 + 0.1 * 30 of 40; of these 0.4 * 5 + 1 * 3 are in the target language.
    judged = {"red": (0.5, 0.4), "blue": (0.1, 1.0)}
    for name, (share, consistency) in judged.items():
        moved.results["results"][name] |= {"language_judged,none": share, "language_consistency,none": consistency}
        vanilla.results["results"][name] |= {"language_judged,none": 0.0}
    header, _, _, swahili, *legend = summary_table([plain, vanilla, moved]).splitlines()
    assert header.split()[-4:] == ["trivial", "unparsed", "language_consistency", "documents"]
    assert swahili.split()[-8:] == ["-", "of", "0%", "/", "0.625", "of", "20%", "40"]
    assert legend[-1].startswith("language_consistency: ")


def test_a_tasks_own_metric_comes_first_where_there_is_no_accuracy() -> None:
    found = run("vanilla", red=(0.5, 10))
    # As results.json has them: by their names.
    found.results["results"]["red"] = {
        "language_consistency,none": 0.9,
        "language_judged,none": 1.0,
        "rouge1,none": 0.3,
    }
    assert summary_table([found]).splitlines()[2].split()[4] == "0.300"


def test_only_runs_that_differ_in_the_transplant_alone_share_a_row() -> None:
    runs = [
        run("vanilla", red=(0.4, 10)),
        run("ffn 3>1", red=(0.5, 8)),  # other documents
        run("ffn 3>1", shots=2, red=(0.6, 10)),  # other prompts
        run("ffn 3>1", red=(0.7, 10)),
    ]
    lines = [line.split() for line in summary_table(runs).splitlines()]
    assert lines[0][4] == "settings"
    rows = {tuple(line[5:]) for line in lines[2:5]}
    assert rows == {
        ("0.400", "0.700", "(+0.300)", "0.250", "10"),
        ("-", "0.500", "0.250", "8"),
        ("-", "0.600", "0.250", "10"),
    }
