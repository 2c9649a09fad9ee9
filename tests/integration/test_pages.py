"""Every command of the README and of the pages is run, or composed where it cannot be run here; the tables say which.

Those on real models with `limit=2`. What takes long is marked slow: `make test` composes it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from docs import links
from tests.conftest import why_no_data
from tests.equivalence.tiny import save_checkpoint, tiny
from xtransplant import cli, compose, record

ROOT = Path(__file__).resolve().parents[2]


def commands(page: str) -> list[str]:
    """The lines of the page's bash blocks, comments left out."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [re.split(r"\s{2,}#", line)[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def files_of(page: str) -> dict[str, str]:
    """The files that a page shows: a line with the name alone, then a block with the content."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))


COMMANDS = {page: found for path in links.pages() if (found := commands(page := path.relative_to(ROOT).as_posix()))}
# Pages whose commands a test of their own runs.
ELSEWHERE = {
    "docs/own-benchmark.md": "integration/test_own_benchmark.py",
    "docs/launchers.md": "integration/test_launchers.py",
    "docs/tracking.md": "integration/test_tracking.py",
    "docs/sharing.md": "unit/test_bundle.py",  # `reproduce`: integration/test_reproduce.py
}
# Run by a test below.
RUN = (
    *("README.md", "docs/experiments.md", "docs/tutorial.md", "docs/own-model.md", "docs/own-strategy.md"),
    *("docs/sft.md", "docs/compare.md"),
)
# Composed only: no test has what these need.
COMPOSED = {
    "docs/gpu.md": "a GPU with CUDA, models of the hub",
    "docs/results/README.md": "hours, and the data folder",
    "docs/results/benchmarks.md": "an hour, and the data folder",
    "docs/results/conditions.md": "hours, and the data folder",
    "docs/results/sweep.md": "an hour",
    "benchmarks/README.md": "quiet cores or a GPU, the data folder, other libraries",
}
# Of pages that are run, the commands that are composed only.
NOT_RUN = {r"data=aya\b": "a data set of the hub"}
# Composing a sweep composes each of its runs.
LONG_TO_COMPOSE = ("docs/results/benchmarks.md", "docs/results/conditions.md", "docs/results/sweep.md")
# Lines that are no command of ours, and what is looked at.
OTHERS = {
    r"make ([a-z-]+)": "the target is there",
    r"export [A-Z_=<>a-z]+.*": "a variable",
    r"(?:XTRANSPLANT_DATA=<folder> |peers/bin/)?python (benchmarks/\w+\.py)( .*)?": "its overrides are composed",
    r"python -m venv peers|peers/bin/pip install .*": "another environment, for libraries that are compared with",
}
# Keys of a benchmark's own, which are no overrides.
OF_BENCHMARKS = ("first_document", "documents", "rounds", "pairs_measured", "shape", "outputs", "every")
NEEDS_DATA = ("task=xcopa", "task=paper_", "task=klar", "xcopa_", "experiment=paper_")
OURS = [line for page in RUN[:2] for line in COMMANDS[page] if line.startswith("xtransplant ")]


def composed(page: str) -> list[str]:
    """The commands of a page that are not run."""
    ours = [line for line in COMMANDS[page] if line.startswith("xtransplant ")]
    return ours if page in COMPOSED else [line for line in ours if any(re.search(each, line) for each in NOT_RUN)]


def test_every_page_is_of_a_kind() -> None:
    """A page with commands, a new one say, stands in one of the tables above."""
    assert sorted(COMMANDS) == sorted([*ELSEWHERE, *RUN, *COMPOSED])
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / "tests" / test).read_text(encoding="utf-8")
    lines = [line for found in COMMANDS.values() for line in found]
    assert all(any(re.search(each, line) for line in lines) for each in NOT_RUN)
    assert len(OURS) >= 15


def test_every_other_line_is_of_a_kind() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page, found in COMMANDS.items():
        if page == "docs/own-strategy.md":
            continue  # a shell runs all of it
        for line in found:
            if line.startswith("xtransplant "):
                continue
            kind = next((each for each in OTHERS if re.fullmatch(each, line)), None)
            assert kind is not None, f"{page}: {line}: of no kind that is known here"
            match = re.fullmatch(kind, line)
            assert match is not None
            if line.startswith("make "):
                assert re.search(rf"^{match[1]}: [a-z]+", makefile, flags=re.MULTILINE), f"{page}: {line}"
            elif "benchmarks/" in line:
                assert (ROOT / match[1]).is_file(), f"{page}: {line}"
                given = [word for word in shlex.split(match[2] or "") if word.partition("=")[0] not in OF_BENCHMARKS]
                if "=" in " ".join(given) and "experiment=" not in line:
                    compose.compose("evaluate", given)


@pytest.mark.parametrize("page", [page for page in COMMANDS if page not in LONG_TO_COMPOSE and composed(page)])
def test_what_cannot_be_run_is_composed(page: str) -> None:
    compose_all(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", LONG_TO_COMPOSE)
def test_sweeps_that_cannot_be_run_are_composed(page: str) -> None:
    compose_all(page)


def compose_all(page: str) -> None:
    for line in composed(page):
        assert cli.main([*shlex.split(line)[1:], "--cfg", "job"]) == 0, line


# --- The README, and whole studies ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models that the pages name as a user's own, and one laid out as on the hub."""
    here = tmp_path_factory.mktemp("pages")
    save_checkpoint("qwen2", here / "Qwen" / "Qwen2.5-0.5B-Instruct")
    save_checkpoint("llama", here / "my-folder")
    base = tiny("llama")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # PEFT's own, of transformers
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["up_proj"]))
    adapted.save_pretrained(str(here / "my-adapter"))
    return here


@pytest.mark.parametrize("line", OURS)
def test_the_commands_run(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = why_no_data()
    if reason is not None and any(each in line for each in NEEDS_DATA) and "--cfg" not in line:
        pytest.skip(reason)
    monkeypatch.chdir(folder)
    arguments = shlex.split(line)[1:]
    if arguments[0] == "lm-eval":
        # The harness reads the process's own arguments, and indexes all its tasks.
        done = subprocess.run(
            [sys.executable, "-m", "xtransplant.cli", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "cldr_language_sw" in done.stdout
        return
    assert cli.main(shortened(arguments)) == 0


def shortened(arguments: list[str]) -> list[str]:
    """With a limit of two documents, or one step of a training."""
    if arguments[0] in ("evaluate", "grid") and "--cfg" not in arguments:
        # Successive halving needs some documents to halve.
        budget = any(each.startswith("grid.budget") for each in arguments)
        return [*arguments, "limit=7" if budget else "limit=2"]
    if arguments[0] == "sft":
        return [*arguments, "steps=1", "batch_size=2", "data.limit=2", "data.held_out=0"]
    return arguments


# --- Other pages -----------------------------------------------------------------------------------------------------


def own_files(page: str, here: Path) -> None:
    for name, content in files_of(page).items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(content, encoding="utf-8")


def test_a_manifest_has_the_keys_of_the_page(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "reference" / "runs.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page.partition("## Keys of the manifest")[2], flags=re.MULTILINE)
    told = {key for row in rows for key in re.findall("`([^`]+)`", row)}
    monkeypatch.chdir(tmp_path)
    given = ["model=hf", f"model.path={folder / 'my-folder'}", "task=cldr_language", "language_pair=en-sw", "limit=2"]
    assert cli.main(["evaluate", *given, "transplant.layers=[1,0]"]) == 0
    assert cli.main(["grid", *given, "grid.pairs=diagonal"]) == 0
    found = record.find_beside(["outputs"], ("evaluate", "grid"))
    assert {key for run in found for key in run.manifest} == told


def test_a_model_of_ones_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "docs/own-model.md"
    own_files(page, folder)
    monkeypatch.chdir(folder)
    for line in COMMANDS[page]:
        assert cli.main(shortened(shlex.split(line)[1:])) == 0, line


@pytest.mark.slow
def test_the_commands_of_the_page_on_training_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = "docs/sft.md"
    monkeypatch.chdir(tmp_path)
    numbers = [
        {"id": number, "instruction": f"say {number}", "input": "", "output": str(number)} for number in range(4)
    ]
    rows = [json.dumps(row) for row in numbers]
    Path("my-instructions").mkdir()
    for language in ("en", "zh"):
        Path(f"my-instructions/{language}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for line in COMMANDS[page]:
        if line in composed(page):
            continue
        arguments = shortened(shlex.split(line)[1:])
        if "model=" not in line and arguments[0] == "sft":
            arguments += ["model=hf", f"model.path={folder / 'my-folder'}"]
        assert cli.main(arguments) == 0, line


def test_the_commands_of_the_page_on_comparing_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["model=hf", f"model.path={folder / 'my-folder'}", "model.name=tiny", "task=cldr_language"]
    asked = [*model, "language_pair=en-sw", "split=unseen", "limit=4"]
    swept = ["evaluate", "-m", *asked, "transplant.layers=null,[2,1]", "tracking=none"]
    assert cli.main(["sft", *shortened(["sft"])[1:], *model, "data.languages=[en,sw]"]) == 0
    assert cli.main(swept) == 0
    [sweep] = [path for path in Path("outputs/sweeps").iterdir() if path.name.startswith("evaluate-")]
    assert cli.main([*swept, "model.adapter=outputs/sft/*"]) == 0  # a pattern names the adapter in a sweep too
    assert cli.main(["grid", *asked, "grid.pairs=diagonal"]) == 0
    for line in COMMANDS["docs/compare.md"]:
        line = line.replace("outputs/sweeps/evaluate-0123456789ab", sweep.as_posix())
        assert cli.main(shlex.split(line)[1:]) == 0, line


def in_a_shell(lines: list[str], here: Path) -> list[str]:
    """What each line prints on its standard output, run as a user would, one after the other in one shell."""
    mark = "----- next -----"
    command = 'xtransplant() { python -m xtransplant.cli "$@"; }'  # this environment's, wherever its scripts are
    program = "\n".join(["set -eu", command, *(f"{line}\necho '{mark}'" for line in lines)])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", program], cwd=here, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout.split(f"{mark}\n")[:-1]


@pytest.mark.slow
def test_a_strategy_of_ones_own(tmp_path: Path) -> None:
    page = "docs/own-strategy.md"
    own_files(page, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"my_strategy.py", "my_ensemble.py"}
    said = in_a_shell([re.sub(r"\blimit=\d+", "limit=3", line) for line in COMMANDS[page]], tmp_path)
    assert "on the sample: [" in "".join(said)
    found = [run.manifest["transplant"]["selection"] for run in record.find_runs([str(tmp_path / "outputs")])]
    assert sorted(each["strategy"] for each in found) == ["fixed", "mean_logprob"]
    [ensemble] = [each for each in found if each["strategy"] == "mean_logprob"]
    assert len(ensemble["cells"]) == 81


@pytest.mark.slow
def test_the_tutorial_was_followed(tmp_path: Path) -> None:
    """All of it, as it stands there: each command prints what the page shows below it, other numbers aside."""
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    steps = re.findall(r"```bash\n(.*?)```(?:\s*```text\n(.*?)```)?", page, flags=re.DOTALL)
    for printed, (command, shown) in zip(in_a_shell([each[0].strip() for each in steps], tmp_path), steps, strict=True):
        for part in re.split(r"^…$\n?", shown, flags=re.MULTILINE):
            assert without_numbers(part) in without_numbers(printed), command
    assert (tmp_path / "outputs" / "report.html").is_file()


def without_numbers(text: str) -> str:
    """As another processor would show it: no numbers, signs and hashes, nor how wide their columns are."""
    text = re.sub(r"\b[0-9a-f]{12}\b", "#", text)
    text = re.sub(r"[-+±]?\d*\.?\d+(e[-+]\d+)?", "#", text)
    return re.sub(r"[ -]+", " ", text).strip()
