"""KLAR: where its documents come from, and that they are parallel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tasks.klar import klar
from xtransplant.types import XTransplantError

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = yaml.safe_load((ROOT / "conf" / "task" / "klar.yaml").read_text(encoding="utf-8"))["languages"]


def test_documents_come_from_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"id": 7, "prompt": "Where? The answer is:", "choices": ["a", "b"], "label": 1}
    (tmp_path / "klar").mkdir()
    (tmp_path / "klar" / "xx.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)
    assert klar.load("xx", data_dir=str(tmp_path))["test"].to_list() == [row]
    monkeypatch.setenv("XTRANSPLANT_DATA", str(tmp_path))
    assert klar.load("xx", metadata="ignored")["test"].num_rows == 1


@pytest.mark.parametrize("folder", [None, "here"])
def test_without_them_it_says_what_to_do(folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)
    given = None if folder is None else str(tmp_path)
    with pytest.raises(
        XTransplantError, match=r"KLAR in 'tr' .* no klar/tr\.jsonl with .*task\.data_dir=\.\.\. or XTRA"
    ):
        klar.load("tr", data_dir=given)


@pytest.mark.data
def test_all_languages_are_parallel(data_dir: Path) -> None:
    english = klar.load("en", data_dir=str(data_dir))["test"]
    for language in LANGUAGES:
        found = klar.load(language, data_dir=str(data_dir))["test"]
        assert (found["id"][:], found["label"][:]) == (english["id"][:], english["label"][:])
        assert {len(choices) for choices in found["choices"]} == {4}
