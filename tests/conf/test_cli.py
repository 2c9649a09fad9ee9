"""The command line: help, composition of every config file, language pairs, sweeps, and the identity of a run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from xtransplant import checks, cli, compose, config, families, grid_jobs, jobs, share_jobs
from xtransplant.checks import keys
from xtransplant.config import JOBS, EvaluateConfig, config_hash, run_name, to_dict
from xtransplant.types import Site, XTransplantError

CONF = Path(str(files("xtransplant.conf")))
ROOTS = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "run")
CHOICES = sorted(
    (
        path.relative_to(CONF).parts[0],
        path.relative_to(CONF / path.relative_to(CONF).parts[0]).with_suffix("").as_posix(),
    )
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF
)
GEMMA_LAYERS = 18


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)
    # Looking up names among 13,000 tasks is tested elsewhere.
    monkeypatch.setattr(families, "check", lambda *_: [])


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the jobs, in order."""
    given: list[Any] = []
    for job in JOBS:
        module = next(each for each in (jobs, grid_jobs, share_jobs) if hasattr(each, job))
        monkeypatch.setattr(module, job, given.append)
    monkeypatch.setattr(jobs, "show", str)
    monkeypatch.setattr(grid_jobs, "show", str)
    return given


def evaluate_config(*overrides: str) -> EvaluateConfig:
    composed = compose.compose("evaluate", overrides)
    assert isinstance(composed, EvaluateConfig)
    return composed


def groups_of(job: str) -> set[str]:
    """The groups that a job's root has a default for."""
    defaults = yaml.safe_load((CONF / f"{job}.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group for each in defaults if isinstance(each, dict) for group in each}


# --- Help ------------------------------------------------------------------------------------------------------------


def test_help_lists_the_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for job, schema in JOBS.items():
        assert re.search(rf"^  {job} +{re.escape(schema.__doc__ or '')}$", text, re.MULTILINE)
    assert "lm-eval" in text


def test_no_job_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "evaluate" in capsys.readouterr().out


@pytest.mark.parametrize("job", JOBS)
def test_help_of_a_job_names_every_key_and_choice(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([job, "limit=nonsense", "--help"]) == 0
    text = capsys.readouterr().out
    shown = " ".join(text.split())
    for key in keys(JOBS[job]):
        assert key.help
        assert f"{key.name}={checks.shown(key.default)} {key.help} ({key.type})" in shown
    for group, choice in CHOICES:
        assert (group not in groups_of(job)) or re.search(rf"\b{choice}\b", text)
    assert all(line == line.rstrip() and len(line) <= 120 for line in text.splitlines())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import xtransplant

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"xtransplant {xtransplant.__version__}\n"


@pytest.mark.parametrize("line", ["--help", "--version", "evaluate --help"])
def test_help_is_quick(line: str) -> None:
    """Under 1.5 s on an idle machine; the bound leaves room for the other tests."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "xtransplant.cli", *line.split()], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    assert min(times) < 3


def test_lm_eval_gets_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(jobs, "lm_eval", given.append)
    assert cli.main(["lm-eval", "run", "--help", "limit=3"]) == 0
    assert given == [["run", "--help", "limit=3"]]


# --- Composition -----------------------------------------------------------------------------------------------------


def faults(job: str, *overrides: str) -> list[str]:
    with compose.open_hydra() as hydra:
        return compose.read(hydra, job, overrides).faults


def test_every_job_has_a_root() -> None:
    assert sorted(JOBS) == ROOTS


@pytest.mark.parametrize("job", JOBS)
def test_root_composes(job: str) -> None:
    assert [fault for fault in faults(job) if not re.match("(grid|unseen|run|a|b) is missing", fault)] == []


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_choice_composes(group: str, choice: str) -> None:
    for job in JOBS:
        if group in groups_of(job) and (
            group != "experiment" or f" {job} " in header(f"{group}/{choice}").splitlines()[0]
        ):
            found = faults(job, f"{group}={choice}")
            if choice in ("hf", "custom", "local"):  # for what is given on the command line
                found = [fault for fault in found if " is missing" not in fault]
            assert found == []


def header(file: str) -> str:
    lines = (CONF / f"{file}.yaml").read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith("# xtransplant "))


def command_lines() -> Iterator[tuple[str, str]]:
    """The commands in the headers of our files."""
    for path in sorted(CONF.rglob("*.yaml")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("# xtransplant ") and "<" not in line:
                yield path.relative_to(CONF).as_posix(), line.removeprefix("# ")


@pytest.mark.parametrize(("file", "line"), list(command_lines()))
def test_command_in_a_header_is_right(file: str, line: str) -> None:
    _, job, *rest = shlex.split(line)
    options, overrides, wrong = cli._split(rest)
    assert wrong == []
    # All that an experiment sweeps over takes long: see tests/integration/test_experiments.py.
    multirun = "--multirun" in options and not file.startswith("experiment/")
    with compose.open_hydra() as hydra:
        request = compose.read(hydra, job, overrides, multirun=multirun)
    assert request.faults == []
    group, _, choice = file.removesuffix(".yaml").partition("/")
    # An experiment's further jobs read what its first one wrote.
    assert (not choice) or f"{group}={choice}" in overrides or (group == "experiment" and job in ("select", "analyze"))


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "task"])
def test_languages_of_a_task_can_be_named(choice: str) -> None:
    """YAML reads `no` as false; and a code must fit into language_pair=<source>-<target>."""
    languages = yaml.safe_load((CONF / "task" / f"{choice}.yaml").read_text(encoding="utf-8")).get("languages", {})
    for code, own in languages.items():
        assert isinstance(code, str)
        assert isinstance(own, str)
        assert re.fullmatch(compose._CODE, code)


def test_modules_are_those_of_the_engine() -> None:
    from xtransplant import engine

    assert [field.name for field in dataclasses.fields(engine.Modules)] == list(checks.MODULES)


def test_plus_is_not_needed_for_a_mapping() -> None:
    expected = {"layers": "a.b", "attn": "c"}
    for given in (
        ["model.modules={layers: a.b, attn: c}"],
        ["model.modules.layers=a.b", "+model.modules.attn=c"],
        ["++model.modules.layers=a.b", "+model.modules={attn: c}"],
    ):
        assert evaluate_config(*given).model.modules == expected
    assert evaluate_config("task.languages.xx=own").task.languages["xx"] == "own"
    assert evaluate_config("+limit=3").limit == 3


def test_options_may_stand_anywhere(ran: list[Any], write: Callable[[str, str], None]) -> None:
    write("model/mine.yaml", "name: mine\npath: embedded:gemma3_270m\n")
    for arguments in (
        ["--config-dir", "mine", "model=mine", "limit=3"],
        ["model=mine", "--config-dir", "mine", "limit=3"],
        ["model=mine", "limit=3", "-cd=mine"],
    ):
        assert cli.main(["evaluate", *arguments]) == 0
    assert [(each.model.name, each.limit) for each in ran] == [("mine", 3)] * 3


def test_cfg_shows_the_config(capsys: pytest.CaptureFixture[str], ran: list[Any]) -> None:
    assert cli.main(["evaluate", "--cfg", "job", "limit=3", "language_pair=en-sw"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["limit"] == 3
    assert shown["language_pair"] == {"source": "en", "target": "sw"}
    assert cli.main(["evaluate", "-c", "job", "-p", "model", "--resolve", "model=hf", "model.path=org/name"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "org/name"
    assert ran == []


@pytest.mark.parametrize("option", ["--info=searchpath", "--info=defaults", "--hydra-help"])
def test_hydra_says_what_it_does(option: str, ran: list[Any]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "xtransplant.cli", "evaluate", option, "seed=3"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "xtransplant" in result.stdout or "language_pair" in result.stdout or "hydra" in result.stdout
    assert list(Path().iterdir()) == []


# --- Experiments -----------------------------------------------------------------------------------------------------


def swept(*overrides: str) -> list[Any]:
    with compose.open_hydra() as hydra:
        request = compose.read(hydra, "evaluate", overrides, multirun=True)
    assert request.faults == []
    return request.runs


def test_an_experiment_sweeps_over_what_its_file_says() -> None:
    runs = swept("experiment=paper_v2/xcopa")
    assert len(runs) == 3 * 9 * 2
    assert {each.model.name for each in runs} == {"llama2_7b_chat", "mistral_7b_instruct_v0_3", "qwen2_7b_instruct"}
    assert {shown_layers(each) for each in runs} == {"None", "['last', 'first']"}
    assert {each.split for each in runs} == {config.Split.unseen}


def shown_layers(given: EvaluateConfig) -> str:
    return str(given.transplant.layers)


def test_what_the_command_line_gives_takes_an_axis_place() -> None:
    runs = swept("experiment=paper_v2/xcopa", "model=smollm2_135m", "language_pair=en-sw,en-th", "limit=3")
    assert [(each.model.name, each.language_pair.target, each.limit) for each in runs] == [
        ("smollm2_135m", language, 3) for language in ("sw", "sw", "th", "th")
    ]
    # A key of what is swept over stays one: all runs have it.
    runs = swept("experiment=paper_v2/xcopa", "model.dtype=float16", "language_pair=en-sw", "transplant=attn")
    assert {(each.model.name, each.model.dtype.value) for each in runs} == {
        (name, "float16") for name in ("llama2_7b_chat", "mistral_7b_instruct_v0_3", "qwen2_7b_instruct")
    }


@pytest.mark.parametrize(
    ("given", "runs"),
    [
        (["transplant.layers=null,[13,2]", "transplant.component=ffn,attn", "transplant.mode=add"], 4),
        (["transplant.component=ffn,attn"], 2),
        (["transplant=vanilla,attn", "transplant.control=noise"], 2),
        (["experiment=mine"], 2),
    ],
)
def test_one_run_of_a_sweep_may_be_vanilla(
    given: list[str], runs: int, ran: list[Any], write: Callable[[str, str], None]
) -> None:
    params = "hydra: {sweeper: {params: {transplant.layers: 'null,[13,2]'}}}\n"
    write("experiment/mine.yaml", f"# @package _global_\ntransplant: {{mode: add}}\n{params}")
    assert cli.main(["evaluate", "-m", "-cd", "mine", *given]) == 0
    assert len(ran) == runs
    assert any(each.is_vanilla for each in ran)
    # Its record is of the vanilla model alone.
    vanilla = next(each for each in ran if each.is_vanilla)
    assert to_dict(vanilla)["transplant"] == to_dict(evaluate_config())["transplant"]


def test_an_experiment_is_done_by_hydras_sweeper(ran: list[Any]) -> None:
    given = ["experiment=embedded/interventions", "transplant.match_norm=true", "transplant.strength=0.5,1"]
    assert cli.main(["evaluate", "-m", *given]) == 0
    found = [(each.transplant.mode.value, each.transplant.strength, each.transplant.match_norm) for each in ran]
    assert sorted(found) == [(mode, s, True) for mode in ("add", "interpolate") for s in (0.5, 1.0)]


def test_one_run_of_an_experiment_says_that_there_are_more(ran: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert cli.main(["evaluate", "experiment=embedded/interventions"]) == 0
    assert len(ran) == 1
    assert "sweeps over transplant.mode, transplant.strength, transplant.match_norm: -m for all" in caplog.text


def test_cfg_of_an_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "-m", "experiment=paper_v2/xnli", "--cfg", "job"]) == 0
    shown = capsys.readouterr()
    assert yaml.safe_load(shown.out)["transplant"]["component"] == "attn"
    assert "# 84 runs" in shown.err and "#   transplant=vanilla,paper_understanding\n" in shown.err
    assert cli.main(["evaluate", "-m", "experiment=paper_v2/xnli", "language_pair=en-sw,en-tr", "-c", "job"]) == 0
    said = capsys.readouterr().err
    assert "# 12 runs" in said and "#   language_pair=en-sw,en-tr\n" in said
    assert cli.main(["evaluate", "language_pair=en-sw", "-c", "job"]) == 0
    assert capsys.readouterr().err == ""


def test_the_single_run_of_the_interventions_is_one_of_its_sweep() -> None:
    given = ("experiment=embedded/interventions", "tracking=none")  # the default of a sweep is another
    assert evaluate_config(*given) in swept(*given)


def test_the_second_job_of_an_experiment() -> None:
    """Vanilla on the unseen half, or what was selected; on the sample alone it is refused."""
    for given in ("split=unseen", "selection=nowhere.json"):
        assert faults("evaluate", "experiment=paper_v1/xcopa", given) == []
    assert "is for grid first" in faults("evaluate", "experiment=paper_v1/xcopa", "output_dir=mine")[0]


# --- Tracking --------------------------------------------------------------------------------------------------------


def tracked(*overrides: str, job: str = "evaluate", folder: str | None = None) -> set[tuple[str, str]]:
    """Backend and mode of each run of a sweep."""
    with compose.open_hydra(folder) as hydra:
        request = compose.read(hydra, job, overrides, multirun=True)
    assert request.faults == []
    return {(each.tracking.backend.value, each.tracking.mode.value) for each in request.runs}  # type: ignore[union-attr]


def test_a_sweep_is_tracked_offline_unless_told_otherwise(write: Callable[[str, str], None]) -> None:
    for job in ("evaluate", "grid"):
        assert tracked("language_pair=en-sw,en-tr", job=job) == {("wandb", "offline")}
    assert tracked("experiment=embedded/interventions", "tracking.tags=[mine]") == {("wandb", "offline")}
    # The command line goes first, then a file.
    assert tracked("tracking=none") == {("none", "online")}
    assert tracked("tracking=wandb") == {("wandb", "online")}
    assert tracked("tracking.mode=online") == {("wandb", "online")}
    assert tracked("tracking=none,wandb") == {("none", "online"), ("wandb", "online")}
    head = "# @package _global_\n"
    write("experiment/none.yaml", f"{head}defaults:\n  - override /tracking: none\n")
    write("experiment/online.yaml", f"{head}defaults:\n  - override /tracking: wandb\nlimit: 3\n")
    write("experiment/section.yaml", f"{head}tracking: {{mode: online, tags: [mine]}}\n")
    write("experiment/axis.yaml", f"{head}hydra:\n  sweeper:\n    params:\n      tracking: none,wandb\n")
    assert tracked("experiment=none", folder="mine") == {("none", "online")}
    assert tracked("experiment=online", folder="mine") == {("wandb", "online")}
    assert tracked("experiment=section", folder="mine") == {("wandb", "online")}
    assert tracked("experiment=axis", folder="mine") == {("none", "online"), ("wandb", "online")}
    assert tracked("experiment=none", "tracking=wandb", folder="mine") == {("wandb", "online")}


def test_other_jobs_and_single_runs_are_not_tracked(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_config().tracking.backend is config.TrackingBackend.none
    with compose.open_hydra() as hydra:
        assert compose.read(hydra, "doctor", ["model=gemma3_270m,smollm2_135m"], multirun=True).faults == []
    assert cli.main(["evaluate", "-m", "--cfg", "job", "limit=3,4"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["tracking"]["mode"] == "offline"


def test_a_runs_name_does_not_depend_on_its_tracking() -> None:
    plain = evaluate_config()
    given = evaluate_config("tracking=wandb", "tracking.project=p", "tracking.group=g", "tracking.tags=[t]")
    assert config_hash(plain) == config_hash(given)
    assert "tracking" not in config.identity(given)


# --- Files of the user's ---------------------------------------------------------------------------------------------


def test_own_model_task_and_experiment(ran: list[Any], write: Callable[[str, str], None]) -> None:
    write("model/mine.yaml", "name: mine\npath: embedded:smollm2_135m\ndtype: bfloat16\n")
    write("task/mine.yaml", 'name: my_task\ntasks: ["my_{lang}"]\nlanguages: {en: eng, ta: tam}\nkey: row\n')
    write(
        "experiment/mine.yaml",
        "# @package _global_\n"
        "defaults:\n  - override /model: mine\n  - override /task: mine\n  - override /language_pair: en-ta\n"
        "limit: 7\n",
    )
    for override in ("experiment=mine", "+experiment=mine"):
        assert cli.main(["evaluate", "-cd", "mine", override]) == 0
    given, same = ran
    assert given == same
    assert (given.model.name, given.model.dtype) == ("mine", config.Dtype.bfloat16)
    assert (given.task.name, given.task.tasks, given.limit) == ("my_task", ["my_{lang}"], 7)
    assert (given.language_pair.source, given.language_pair.target) == ("en", "ta")


def test_own_root(ran: list[Any], write: Callable[[str, str], None]) -> None:
    write("study.yaml", "defaults:\n  - evaluate\n  - override language_pair: tr-zh_CN\n  - _self_\nlimit: 7\n")
    assert cli.main(["evaluate", "-cd", "mine", "-cn", "study", "seed=5"]) == 0
    (given,) = ran
    assert isinstance(given, EvaluateConfig)
    assert (given.language_pair.source, given.language_pair.target) == ("tr", "zh_CN")
    assert (given.limit, given.seed) == (7, 5)


def test_a_record_can_be_run_again(ran: list[Any], write: Callable[[str, str], None]) -> None:
    """config.yaml of a run folder holds `to_dict`."""
    first = evaluate_config("language_pair=en-sw", "transplant.layers=[3,-1]", "transplant.component=attn", "limit=3")
    write("config.yaml", yaml.safe_dump(to_dict(first)))
    assert cli.main(["evaluate", "-cd", "mine", "-cn", "config"]) == 0
    assert ran == [first]


# --- Language pairs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "source", "target"),
    [
        ("en-sw", "en", "sw"),
        ("no-en", "no", "en"),
        ("ceb-zh_CN", "ceb", "zh_CN"),
        ("sr_Latn_RS-en", "sr_Latn_RS", "en"),
    ],
)
def test_any_two_codes_are_a_pair(given: str, source: str, target: str) -> None:
    pair = evaluate_config(f"language_pair={given}").language_pair
    assert (pair.source, pair.target) == (source, target)


def test_same_language_on_both_sides() -> None:
    """The paper does that, too: it still is an intervention between different layers."""
    pair = evaluate_config("language_pair=en-en").language_pair
    assert (pair.source, pair.target) == ("en", "en")


def test_pairs_through_hydras_own_compose() -> None:
    import hydra

    with compose.open_hydra():
        composed = hydra.compose("evaluate", ["language_pair=fr-sw"])
    assert dict(composed.language_pair) == {"source": "fr", "target": "sw"}


def test_composing_inside_a_job() -> None:
    """A job may compose, too; Hydra then still knows the outer one."""
    with compose.open_hydra() as hydra:
        assert evaluate_config("limit=3").limit == 3
        assert compose.read(hydra, "evaluate", ["limit=4"]).runs[0].limit == 4  # type: ignore[union-attr]
        from hydra.core.global_hydra import GlobalHydra

        assert GlobalHydra.instance().hydra is hydra


# --- Sweeps ----------------------------------------------------------------------------------------------------------


def test_sweep_over_choices_and_layers(ran: list[Any]) -> None:
    line = "evaluate -m language_pair=en-sw,en-tr transplant.layers=null,[last,first] seed=range(0,2)"
    assert cli.main(line.split()) == 0
    expected = itertools.product(["sw", "tr"], [None, ["last", "first"]], [0, 1])
    assert [(each.language_pair.target, each.transplant.layers, each.seed) for each in ran] == list(expected)
    [swept] = Path().glob("*/*/*")  # Hydra leaves nothing elsewhere
    assert len(json.loads((swept / "sweep.json").read_text())["runs"]) == 8


def test_sweep_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def evaluate(given: EvaluateConfig) -> None:
        if given.seed == 1:
            raise XTransplantError("the data has gone")
        if given.seed == 2:
            raise RuntimeError("a bug")
        done.append(given.seed)

    monkeypatch.setattr(jobs, "evaluate", evaluate)
    assert cli.main(["evaluate", "-m", "seed=0,1,2,3", "limit=3"]) == 1
    assert done == [0, 3]
    said = capsys.readouterr().err
    assert said.count("Traceback") == 1
    assert "error: 2 of 4 runs are not finished:\n  seed=1: the data has gone\n  seed=2: RuntimeError: a bug\n" in said
    assert said.endswith("Go on with: xtransplant evaluate -m seed=0,1,2,3 limit=3\n")


def test_bad_sweep_starts_no_run(ran: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "-m", "limit=5,0", "transplant.layers=[0,0],[0,18]"]) == 2
    assert ran == []
    said = capsys.readouterr().err
    assert "limit=0" in said
    assert "layer 18" in said


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(_: EvaluateConfig) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(jobs, "evaluate", evaluate)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["evaluate"])


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def evaluate(_: EvaluateConfig) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "evaluate", evaluate)
    assert cli.main(["evaluate", "-m", "seed=1,2"]) == 130
    kept = "What is finished, and parts of grids and trainings, are kept."
    said = f"interrupted. {kept} Go on with: xtransplant evaluate -m seed=1,2"
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_summarize_gets_the_patterns(ran: list[Any]) -> None:
    Path("outputs/evaluate/a").mkdir(parents=True)
    assert cli.main(["summarize"]) == 0
    assert cli.main(["summarize", "runs=[outputs/evaluate/a]"]) == 0
    assert [config.runs for config in ran] == [["outputs/evaluate/*"], ["outputs/evaluate/a"]]
    assert [(config.format.value, config.output) for config in ran] == [("text", None)] * 2


# --- Identity of a run -----------------------------------------------------------------------------------------------


def test_hash_of_a_config() -> None:
    one = config_hash(evaluate_config("language_pair=en-sw"))
    assert re.fullmatch("[0-9a-f]{12}", one)
    assert one == config_hash(evaluate_config("language_pair.target=sw"))


@pytest.mark.parametrize(
    "override",
    ["output_dir=x", "overwrite=true", "batch_size=1", "task.data_dir=x", "model.device=cpu", "model.device_map=auto"],
)
def test_where_and_how_is_not_in_the_hash(override: str) -> None:
    assert config_hash(evaluate_config(override)) == config_hash(evaluate_config())


@pytest.mark.parametrize(
    "override",
    ["limit=1", "seed=0", "split=unseen", "model.dtype=bfloat16", "task.num_fewshot=0", "transplant.layers=[0,0]"],
)
def test_what_is_computed_is_in_the_hash(override: str) -> None:
    assert config_hash(evaluate_config(override)) != config_hash(evaluate_config())


def test_layers_are_the_same_however_they_are_named() -> None:
    named = [
        evaluate_config(f"transplant.layers={given}") for given in ("[last,first]", "[17,0]", "[-1,-18]", "[-1,first]")
    ]
    assert len({config_hash(each, GEMMA_LAYERS) for each in named}) == 1
    assert len({config_hash(each) for each in named}) == 4  # of a model whose depth is not known
    assert {run_name(each, GEMMA_LAYERS) for each in named} == {"gemma3_270m-cldr-en-de-ffn-17-0"}
    assert to_dict(named[0], GEMMA_LAYERS)["transplant"]["layers"] == [17, 0]


def test_vanilla_is_one_whatever_is_not_transplanted() -> None:
    one = evaluate_config("transplant.component=attn")
    one.transplant.site = Site.branch
    assert to_dict(one) == to_dict(evaluate_config())
    assert config_hash(one) == config_hash(evaluate_config())
    assert run_name(one) == "gemma3_270m-cldr-en-de-vanilla"


@pytest.mark.parametrize(
    ("overrides", "ending"),
    [
        (["component=attn"], "attn-3-4"),
        (["component=attn_as_released", "site=branch"], "attn_as_released-3-4-branch"),
        (["layers=[[3,4],[last,first]]"], "ffn-17_0_3_4"),
        (["mode=add", "strength=-0.5", "match_norm=true"], "ffn-3-4-add_0.5-norm"),
        (["mode=interpolate", "positions=2", "scope=every_step"], "ffn-3-4-interpolate1-last2-every_step"),
        (["positions=all", "mean_over=[fr,es]", "control=noise"], "ffn-3-4-all-mean_fr_es-noise"),
    ],
)
def test_name_tells_the_transplant(overrides: list[str], ending: str) -> None:
    given = ["transplant.layers=[3,4]", *(f"transplant.{each}" for each in overrides)]
    assert run_name(evaluate_config(*given), GEMMA_LAYERS) == f"gemma3_270m-cldr-en-de-{ending}"
    assert run_name(evaluate_config(*given, "prompt=both"), GEMMA_LAYERS).endswith(f"{ending}-both"[-40:])


@pytest.mark.parametrize(
    "name", ["some/where/Llama 3.2 1B", "C:\\models\\Llama 3.2 1B", "a/b/" + "very_long" * 20, "../.."]
)
def test_name_is_safe(name: str) -> None:
    given = evaluate_config("transplant.layers=[last,first]", "language_pair=sr_Latn_RS-zh_CN")
    given.model.name, given.task.name = name, "tâche: 1/2 " + "x" * 50
    made = run_name(given)
    assert re.fullmatch("[A-Za-z0-9._-]+", made)
    assert len(made) <= 80
    assert "where" not in made


def test_plain_values() -> None:
    plain = to_dict(evaluate_config())
    assert plain == json.loads(json.dumps(plain))
    assert plain["transplant"] == {
        **{"component": "ffn", "site": "module", "control": "none", "mean_over": [], "mode": "replace"},
        **{"strength": 1.0, "match_norm": False, "positions": 1, "scope": "first_token", "layers": None},
    }
