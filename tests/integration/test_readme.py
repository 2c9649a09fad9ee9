"""Every command of the README is run; those on real models with `limit=2`."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.conftest import why_no_data
from tests.equivalence.tiny import save_checkpoint, tiny
from xtransplant import cli

ROOT = Path(__file__).resolve().parents[2]


def commands(page: str) -> list[str]:
    """The lines of the page's bash blocks, comments left out."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.partition("   #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


OURS = [line for line in commands("README.md") if line.startswith("xtransplant ")]
NEEDS_DATA = ("task=xcopa", "task=paper_", "task=klar", "xcopa_", "experiment=paper_")


def test_every_command_is_of_a_kind_that_is_run() -> None:
    others = [line for line in commands("README.md") if line not in OURS]
    assert others == ["make demo", "make test"]
    assert len(OURS) >= 15
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in others:
        assert re.search(rf"^{line.split()[1]}: install", makefile, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models that the README names as a user's own, and one laid out as on the hub."""
    here = tmp_path_factory.mktemp("readme")
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
def test_the_commands_of_the_readme_run(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    if arguments[0] in ("evaluate", "grid") and "--cfg" not in arguments:
        # Successive halving needs some documents to halve.
        arguments = [*arguments, "limit=7" if "grid.budget" in line else "limit=2"]
    if arguments[0] == "sft":
        arguments = [*arguments, "steps=1", "batch_size=2", "data.limit=2", "data.held_out=0"]
    assert cli.main(arguments) == 0
