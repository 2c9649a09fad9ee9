"""`xtransplant list`: what there is, found by words, quickly; and what a near miss may mean."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from tests.unit.test_imports import HEAVY
from xtransplant import catalogue, cli
from xtransplant.checks import near
from xtransplant.config import JOBS

CONF = Path(str(files("xtransplant.conf")))
Listed = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def listed(capsys: pytest.CaptureFixture[str]) -> Listed:
    """The lines that `xtransplant list …` prints."""

    def run(line: str) -> list[str]:
        assert cli.main(["list", *shlex.split(line)]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def names(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines]


# --- Lines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["models", "tasks", "data", "experiments"])
def test_every_choice_has_a_line(kind: str) -> None:
    group = CONF / kind.removesuffix("s")
    expected = sorted(path.relative_to(group).with_suffix("").as_posix() for path in group.rglob("*.yaml"))
    found = catalogue.entries(kind)
    assert [entry.name for entry in found] == expected
    assert all(re.search(r"\w{3}", entry.columns[1]) for entry in found), "the comment at the top says what it is"


def test_line_of_a_task(listed: Listed) -> None:
    found = {line.split()[0]: line for line in listed("tasks")}
    about = "Facts of the Unicode CLDR, from the package Babel: the currency of a country"
    about += " (16 languages; multiple choice by likelihood)"
    assert re.split("  +", found["cldr_currency"]) == ["cldr_currency", about]
    assert found["custom"].endswith("(any language)")
    assert found["mgsm"].endswith("(11 languages; generate)")


def test_line_of_a_model(listed: Listed) -> None:
    found = {line.split()[0]: re.split("  +", line) for line in listed("models")}
    assert found["smollm2_135m"] == ["smollm2_135m", "embedded:smollm2_135m", "Apache-2.0"]
    assert found["hf"][:2] == ["hf", "model.path=…"]


def test_line_of_a_language(listed: Listed) -> None:
    (line,) = listed("languages qu")
    families = [
        path.stem
        for path in sorted((CONF / "task").glob("*.yaml"))
        if "qu" in yaml.safe_load(path.read_text(encoding="utf-8")).get("languages", {})
    ]
    assert "xcopa" in families
    assert re.split("  +", line) == ["qu", "Quechua", ", ".join(families)]


def test_line_of_data(listed: Listed) -> None:
    found = {line.split()[0]: line for line in listed("data")}
    assert "MBZUAI/Bactrian-X" in found["bactrian_x"]
    assert found["bactrian_x"].endswith("(52 languages; parallel by id; CC BY-NC 4.0)")
    assert "not parallel; Apache-2.0)" in found["aya"] and "data.path=…" in found["local"]
    assert found["task"].endswith("(the task's languages, parallel, licence)")
    assert names(listed("data swahili")) == ["aya", "bactrian_x"]


def test_columns_are_aligned(listed: Listed) -> None:
    lines = listed("tasks")
    about = [re.fullmatch(r"(\S+ +)(\S.*)", line) for line in lines]
    assert len({len(match[1]) for match in about if match}) == 1
    assert all(about)
    assert lines == [line.rstrip() for line in lines]


# --- Search ----------------------------------------------------------------------------------------------------------


def test_all_words_must_occur_in_any_case(listed: Listed) -> None:
    assert {"paper_xnli", "paper_xnli_mc"} <= set(names(listed("tasks XNLI")))
    assert "paper_xnli" not in names(listed("tasks xnli likelihood"))
    assert "paper_xnli_mc" in names(listed("tasks likelihood xnli"))
    by_likelihood = set(names(listed("tasks swahili likelihood")))
    assert {"belebele", "cldr_language", "xcopa", "afrixnli"} <= by_likelihood
    assert set(names(listed("tasks swahili multiple choice"))) == by_likelihood
    assert "mgsm" in set(names(listed("tasks swahili generate"))) - by_likelihood


def test_a_code_is_a_word_of_its_own(listed: Listed) -> None:
    """MGSM has Swahili and its line says "answered"; klar has no Swahili, and XQuAD's no code of it."""
    for words in ("sw", "SW", "swahili"):
        found = names(listed(f"tasks {words}"))
        assert {"mgsm", "xcopa", "cldr"} <= set(found)
        assert not {"klar", "paper_xquad"} & set(found)
    assert "sw" in names(listed("languages mgsm"))
    assert "ja" in names(listed("languages japanese"))
    assert "zh" not in names(listed("languages japanese"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tasks xkopa", ("list tasks xkopa", "none of the", "Did you mean", "xcopa", "All: xtransplant list tasks.")),
        ("tasks swahilli", ("Did you mean sw?",)),
        ("languages jpn", ("Did you mean ja?",)),
        ("models gema3", ("Did you mean gemma3",)),
        ("models qwen gemma", ("all these words", "All: xtransplant list models.")),
        ("models zzzzzz", ("this word. All",)),
    ],
)
def test_nothing_found(line: str, said: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", *line.split()]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(part in shown.err for part in said), shown.err


# --- Files of the user's ---------------------------------------------------------------------------------------------


def test_own_files(listed: Listed, write: Callable[[str, str], None]) -> None:
    write("model/mine.yaml", "# My model. It is good.\nname: mine\npath: folder/mine\n")
    write("model/hf.yaml", "name: other\npath: other/path\nlicence: MIT\n")
    write("task/mine.yaml", "# Riddles\n# xtransplant evaluate task=mine\nname: mine\nlanguages: {en: e, qya: q}\n")
    write("task/more.yaml", "# Riddles again.\ndefaults: [mine, _self_]\nkey: id\n")
    for line in ("models -cd mine folder/mine", "--config-dir mine models folder/mine", "-cd=mine models folder/mine"):
        assert [re.split("  +", each) for each in listed(line)] == [["mine", "folder/mine", "My model"]]
    assert re.split("  +", listed("models -cd mine other/path")[0]) == ["hf", "other/path", "MIT"]
    assert [re.split("  +", each) for each in listed("tasks -cd mine riddles")] == [
        ["mine", "Riddles (2 languages)"],
        ["more", "Riddles again (2 languages)"],
    ]
    assert [re.split("  +", each) for each in listed("languages -cd mine qya")] == [["qya", "-", "mine, more"]]


def test_a_folder_without_files_of_a_kind(listed: Listed, write: Callable[[str, str], None]) -> None:
    ours = listed("models")
    write("task/mine.yaml", "name: mine\n")
    assert listed("models -cd mine") == ours


def test_a_file_that_is_not_yaml(write: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]) -> None:
    write("task/broken.yaml", "name: [\n")
    assert cli.main(["list", "languages", "-cd", "mine"]) == 2
    assert "mine/task/broken.yaml: not YAML" in capsys.readouterr().err


def test_a_file_of_tasks_beside_its_folder(
    write: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    write("mine.yaml", "defaults: [evaluate, _self_]\nlimit: 3\n")  # for --config-name
    assert cli.main(["list", "tasks", "-cd", "mine"]) == 0
    write("riddles.yaml", "name: riddles\ntasks: [riddles]\nkey: id\n")
    for line in (["list", "tasks", "-cd", "mine"], ["evaluate", "-cd", "mine", "task=riddles"]):
        assert cli.main(line) == 2
        said = capsys.readouterr().err
        assert "--config-dir mine: found mine/riddles.yaml: it should be mine/task/riddles.yaml." in said


def test_a_wrong_key_is_seen_in_the_list(listed: Listed, write: Callable[[str, str], None]) -> None:
    write("task/mine.yaml", "# Riddles.\nname: mine\ntasks: [mine]\nkey: id\ngoald: label\n")
    assert listed("tasks -cd mine riddles") == ["mine  Riddles (any language; to be mended: there is no key goald)"]


EXPERIMENT = "# @package _global_\n# {about}\n# xtransplant evaluate experiment={name}\ndefaults: []\nlimit: 3\n"


EXPERIMENTS = {"okapi": "A zebra. For tests.", "herd/gnu": "Its herd:\n# ZEBRAS", "herd/kudu": "Zebra"}


def test_experiments_in_folders(listed: Listed, write: Callable[[str, str], None]) -> None:
    for name, about in EXPERIMENTS.items():
        write(f"experiment/{name}.yaml", EXPERIMENT.format(about=about, name=name))
    assert {"okapi", "herd/gnu", "herd/kudu"} <= set(names(listed("experiments -cd mine")))
    assert [re.split("  +", line) for line in listed("experiments -cd mine zebra")] == [
        ["herd/gnu", "Its herd: ZEBRAS (evaluate, 1 run)"],
        ["herd/kudu", "Zebra (evaluate, 1 run)"],
        ["okapi", "A zebra (evaluate, 1 run)"],
    ]
    assert names(listed("experiments -cd mine herd zebras")) == ["herd/gnu"]


def test_line_of_an_experiment(listed: Listed, write: Callable[[str, str], None]) -> None:
    """The job of its first command, the runs of its sweep, and what it needs."""
    found = {line.split()[0]: line for line in listed("experiments")}
    assert found["paper_v2/xcopa"].endswith("(evaluate, 54 runs, llama2_7b_chat gated)")
    assert found["paper_v1/xcopa"].endswith("(grid, 33 runs, llama2_7b_chat gated)")
    assert found["embedded/mgsm"].endswith("(evaluate, 8 runs, needs the data folder (XTRANSPLANT_DATA))")
    params = "hydra: {sweeper: {params: {transplant.layers: 'null,[13,2],[[0,6],[0,7]]', seed: '1,2', limit: 3}}}\n"
    write("experiment/mine.yaml", f"# Zebras. Needs a zoo.\n{params}")
    assert re.split("  +", listed("experiments -cd mine zebra")[0]) == ["mine", "Zebras (6 runs, needs a zoo)"]


def test_no_experiments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(catalogue, "entries", lambda *_: [])
    assert cli.main(["list", "experiments"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "experiment/<name>.yaml" in shown.err


@pytest.mark.parametrize(
    ("given", "meant"),
    [("+experiment=okapy", "okapi"), ("experiment=hord/kudu", "herd/kudu"), ("experiment=gnu", "herd/gnu")],
)
def test_did_you_mean_an_experiment(
    given: str, meant: str, write: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, about in EXPERIMENTS.items():
        write(f"experiment/{name}.yaml", EXPERIMENT.format(about=about, name=name))
    assert cli.main(["evaluate", "-cd", "mine", given]) == 2
    said = capsys.readouterr().err
    assert f"Did you mean {meant}" in said
    assert "xtransplant list experiments" in said


# --- Near misses -----------------------------------------------------------------------------------------------------


def test_near_names() -> None:
    models = [entry.name for entry in catalogue.entries("models")]
    for name in models:
        assert near(name.upper().replace("_", "-"), models)[0] == name
    assert near("mistral", models) == ["mistral_7b_instruct_v0_3"]
    assert near("nothing_like_it", models) == []
    assert near("", models) == []


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("SW", ["sw"]),
        ("en_GB", ["en"]),
        ("Swahili", ["sw"]),
        ("swahilli", ["sw"]),
        ("swa", ["sw"]),
        ("jpn", ["ja"]),
        ("jp", ["ja"]),
        ("zh-hant", ["zh-Hant", "zh"]),
        ("xx", []),
        ("", []),
    ],
)
def test_languages_meant(given: str, meant: list[str]) -> None:
    assert catalogue.languages_meant(given, ["en", "ja", "sw", "zh", "zh-Hant"]) == meant


def test_languages_have_names() -> None:
    assert catalogue.language_name("sw") == "Swahili"
    assert catalogue.language_name("ar-Latn") == "Arabic (Latin)"
    assert catalogue.language_name("zh-Hant") == "Traditional Chinese"
    assert catalogue.language_name("xx") == ""


# --- As a command ----------------------------------------------------------------------------------------------------


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {kind} ", text, re.MULTILINE) for kind in catalogue.KINDS)
    assert "--config-dir" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  list ", text, re.MULTILINE)
    assert all(len(line) <= 120 for line in text.splitlines())
    assert not set(JOBS) & {"list"}


@pytest.mark.parametrize("kind", catalogue.KINDS)
def test_a_list_is_quick_and_loads_nothing_heavy(kind: str) -> None:
    """In processor time, which other tests beside it do not change much; 0.3 s, or less, from start to end."""
    program = (
        f"import sys, time; from xtransplant import cli; cli.main(['list', '{kind}']);"
        f"print(time.process_time(), *sorted(set(sys.modules) & {{'hydra', *{HEAVY}}}), file=sys.stderr)"
    )
    done = [subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True) for _ in "123"]
    said = [each.stderr.splitlines()[-1].split() for each in done]
    assert [heavy for _, *heavy in said] == [[], [], []]
    assert min(float(seconds) for seconds, *_ in said) < 1


@pytest.mark.parametrize("line", ["list languages", "list tasks -h", "grid --help", "--help", "lm-eval ls --help"])
def test_a_reader_may_have_enough(line: str) -> None:
    """As `xtransplant list languages | true`: the pipe is closed before anything is written."""
    said = subprocess.Popen(
        [sys.executable, "-m", "xtransplant.cli", *line.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert said.stdout is not None and said.stderr is not None
    said.stdout.close()
    errors = said.stderr.read()
    said.stderr.close()
    assert said.wait() == 0
    assert errors == b""
