"""Small parallel lm-eval tasks in a folder of their own, as a user would add them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

COUNTRIES = ["France", "Kenya", "Japan", "Peru", "Egypt", "Iceland", "Nepal", "Cuba", "Chad", "Laos"]


def documents(language: str, shift: int = 0) -> list[dict[str, Any]]:
    """Ten parallel documents; `shift` misplaces the labels."""
    colour = {"en": "The colour of {} is", "sw": "Rangi ya {} hasa kwa wengi ni"}[language]
    choices = {"en": ["red", "dark green", "blue"], "sw": ["nyekundu", "kijani kibichi", "buluu"]}[language]
    return [
        {
            "id": f"doc-{n}",
            "question": colour.format(country) + " so" * (n % 4),
            "choices": choices,
            "label": (n * n + shift) % 3,
            "left": f"Of {country} and {choices[0]}",
            "right": f"Of {country} and {choices[1]}, rather",
        }
        for n, country in enumerate(COUNTRIES)
    ]


def write_tasks(folder: Path, **documents_of: list[dict[str, Any]]) -> Path:
    """Tasks colour_<kind>_<language> for en and sw; each language's documents may be replaced, e.g. sw=[…]."""
    folder.mkdir(parents=True, exist_ok=True)
    for language in ("en", "sw"):
        rows = documents_of.get(language, documents(language))
        data = folder / f"{language}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        # The second file keeps the few-shot pool apart; reversed, so that rows do not align by accident.
        shots = folder / f"{language}.shots.jsonl"
        pool = [row | {"id": f"shot-{n}"} for n, row in enumerate(rows[:6])]
        ordered = pool if language == "en" else pool[::-1]
        shots.write_text("".join(json.dumps(row) + "\n" for row in ordered), encoding="utf-8")
        common = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data), "train": str(shots)}},
            "test_split": "test",
            "fewshot_split": "train",
            "target_delimiter": " ",
            "metadata": {"version": 1.0},
        }
        metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
        exact = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
        ask = {"doc_to_text": "{{question}}"}
        kinds: dict[str, dict[str, Any]] = {
            "choice": ask
            | {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "label"}
            | {"metric_list": [metric]},
            "generate": ask
            | {"output_type": "generate_until", "doc_to_target": "{{choices[label]}}", "metric_list": [exact]}
            | {"generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 9, "do_sample": False}},
            "sampled": ask
            | {"output_type": "generate_until", "doc_to_target": "{{choices[label]}}", "metric_list": [exact]}
            | {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 9, "do_sample": True, "temperature": 0.7}},
            "word": ask
            | {"output_type": "loglikelihood", "doc_to_target": " {{choices[label]}}", "metric_list": [metric]},
            # A context for each choice, one continuation: as Winogrande.
            "contexts": {"output_type": "multiple_choice", "doc_to_text": "{{label % 2}}", "metric_list": [metric]}
            | {"doc_to_choice": "{{[left, right]}}", "doc_to_target": "is a place"},
            # All text in the choices, as the harness's own XNLI.
            "empty": {"output_type": "multiple_choice", "doc_to_text": "", "metric_list": [metric]}
            | {"doc_to_choice": "{{choices}}", "doc_to_target": "label"},
        }
        for kind, body in kinds.items():
            config = {"task": f"colour_{kind}_{language}", **common, **body}
            (folder / f"{kind}_{language}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder
