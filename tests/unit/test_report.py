"""What a report is made of, without a browser or a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_compare import a_run, changed
from xtransplant import record, report


def test_a_language_pair_that_is_refused_leaves_the_others_together(tmp_path: Path) -> None:
    """So that p is corrected for all of them, and they have an average."""
    found = report.Found()
    for pair in ("en-de", "en-sw", "en-tr"):
        found.evaluated += [
            a_run(tmp_path, "vanilla", pair, red=[0] * 10),
            a_run(tmp_path, "b", pair, red=[1] * 6 + [0] * 4),
        ]
    changed(found.evaluated[-1], version=2.0)
    found.compare()
    assert len(found.refused) == 1 and "en-tr" in found.refused[0] and "version" in found.refused[0]
    lines = [line for line in found.records if line["condition"] == "b"]
    assert [(line["pair"], line["pooled"]) for line in lines] == [
        ("en-de", None), ("en-sw", None), (None, "micro"), (None, "macro"),
    ]  # fmt: skip
    assert lines[0]["p"] == pytest.approx(2 / 2**6) and lines[0]["p_holm"] == pytest.approx(2 * 2 / 2**6)


def test_a_training_that_diverged_is_shown_too(tmp_path: Path) -> None:
    folder = tmp_path / "sft" / "tiny-0123456789ab"
    record.open_run(folder, "seed: 1\n")
    losses: list[dict[str, Any]] = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": float("nan")}]
    record.write(folder / "training.jsonl", "".join(record.as_json(each, indent=None) for each in losses))
    record.write(folder / "results.json", "{}\n")
    record.close_run(folder, {"job": "sft", "model_name": "tiny", "languages": ["en"], "training": "training.jsonl"})
    run = record.load_run(folder)
    assert run is not None
    data = report.gather(report.Found(trained=[run]))
    assert data["training"][0]["curve"] == [[1, 2.5, None, None], [2, None, None, None]]
    assert "NaN" not in report.page(data).partition('id="report-data">')[2].partition("</script>")[0]
