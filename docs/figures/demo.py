"""Draw docs/figures/demo.svg from the runs of `make demo`: python docs/figures/demo.py outputs/demo"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

from xtransplant.record import find_runs

WIDTH, LEFT, RIGHT, TOP, ROW = 720, 70, 60, 64, 44
COLOURS = {"vanilla": "#9aa5b1", "transplant": "#2b6cb0"}


def draw(folder: str) -> str:
    """Two bars a language (accuracy on the unseen half), and the guess that reads no question as a dashed line."""
    rows: dict[str, dict[str, float]] = {}
    trivial = 0.0
    condition = ""
    for run in find_runs([folder]):
        kind = "vanilla" if run.manifest["condition"] == "vanilla" else "transplant"
        condition = condition if kind == "vanilla" else run.manifest["condition"]
        [(task, facts)] = run.manifest["tasks"].items()
        target = run.manifest["language_pair"].split("-")[1]
        rows.setdefault(target, {})[kind] = run.results["results"][task]["acc,none"]
        trivial = facts["trivial_baseline"]
    languages = sorted(rows, key=lambda code: -rows[code]["vanilla"])
    height = TOP + ROW * len(languages) + 34
    scale = WIDTH - LEFT - RIGHT
    title = "Official language of a country, Gemma 3 270M"
    namespace = 'xmlns="http://www.w3.org/2000/svg"'
    parts = [
        f'<svg {namespace} viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="bold">{title}</text>',
        f'<text x="{LEFT}" y="44" fill="{COLOURS["vanilla"]}">■ vanilla</text>',
        f'<text x="{LEFT + 80}" y="44" fill="{COLOURS["transplant"]}">■ English transplanted '
        f"({escape(condition)})</text>",
        f'<text x="{LEFT + 330}" y="44" fill="#555555">┆ guess without reading the question</text>',
    ]
    for n, code in enumerate(languages):
        y = TOP + ROW * n
        parts.append(f'<text x="{LEFT - 12}" y="{y + 24}" text-anchor="end" font-weight="bold">{code}</text>')
        for m, kind in enumerate(COLOURS):
            value = rows[code][kind]
            length, top = value * scale, y + 2 + 18 * m
            parts.append(
                f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="16" fill="{COLOURS[kind]}"/>'
                f'<text x="{LEFT + length + 6:.1f}" y="{top + 13}">{value:.2f}</text>'
            )
    x = LEFT + trivial * scale
    bottom = TOP + ROW * len(languages)
    parts += [
        f'<line x1="{x:.1f}" y1="{TOP - 4}" x2="{x:.1f}" y2="{bottom}" stroke="#555555" stroke-dasharray="4 3"/>',
        f'<text x="{LEFT}" y="{bottom + 20}" fill="#555555">accuracy, 57 unseen documents a language</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("demo.svg").write_text(draw(sys.argv[1]), encoding="utf-8")
