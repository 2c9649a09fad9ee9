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
