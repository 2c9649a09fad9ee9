"""The site's own code: links between pages, and the reference that is made of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs import from_code, links
from xtransplant.checks import keys
from xtransplant.config import JOBS


def test_no_page_has_a_link_that_leads_nowhere() -> None:
    assert links.broken() == []


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("other.md", None), ("other.md#a-heading-of-it-2", None), ("../conf/one.yaml", None), ("../conf", None),
        ("#here", None), ("https://example.org/x#y", None),
        ("gone.md", "no such file"), ("other.md#gone", "no such heading"), ("#gone", "no such heading"),
        ("../../secret", "outside the repository"), ("../conf/one.yaml#x", "no such heading"),
    ],
)  # fmt: skip
def test_a_link_is_looked_after(link: str, why: str | None, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    (root / "docs").mkdir(parents=True)
    (root / "conf").mkdir()
    (root / "conf" / "one.yaml").touch()
    (root / "docs" / "other.md").write_text("# A heading, of [it](#here) (2)\n\n# Here\n", encoding="utf-8")
    text = f"# Here\n\nSee [`it`]({link}) and `[code](in-code)`.\n\n```text\n[x](in-a-block)\n```\n"
    (root / "docs" / "page.md").write_text(text, encoding="utf-8")
    assert links.broken(root) == ([] if why is None else [f"docs/page.md:3: {link}: {why}"])


def test_links_to_pages_from_outside_are_those_of_the_site() -> None:
    page = links.ROOT / "docs" / "results" / "README.md"
    text = "[a](../../benchmarks/README.md#memory) [b](../../README.md) [c](../tasks.md) [d](../../conf/evaluate.yaml)"
    assert links.on_the_site(text, page) == (
        "[a](../benchmarks.md#memory) [b](path:../../README.md) [c](../tasks.md) [d](../../conf/evaluate.yaml)"
    )


def test_the_reference_has_every_job_and_key() -> None:
    text = from_code.jobs()
    for job, schema in JOBS.items():
        section = text.partition(f"## {job}\n")[2].partition("\n## ")[0]
        assert all(f"| `{key.name}` |" in section for key in keys(schema)), job
    codes = from_code.command_line().partition("## Exit codes")[2]
    assert "| `2` | the input was refused |" in codes and "| `128 + n` | killed by signal n |" in codes
    with pytest.raises(ValueError, match="no exit code: 'or else'"):
        from_code.exit_codes("Exit codes: 0 done; or else.")
    assert "| `gemma3_270m` |" in from_code.choices()
