"""Bad input is refused before anything is loaded, with what was given and what is allowed, and no traceback."""

from __future__ import annotations

import functools
import importlib.util
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from xtransplant import cli, families, grid_jobs, jobs, share_jobs
from xtransplant.config import JOBS
from xtransplant.types import XTransplantError

Refused = Callable[..., str]

# A command line, then what its message must hold: what was given, and something that is allowed instead.
CASES: list[tuple[str, tuple[str, ...]]] = [
    # jobs and options
    ("evalute", ("evalute", "Did you mean evaluate?", "doctor", "summarize", "lm-eval")),
    ("model=gemma3_270m", ("model=gemma3_270m", "evaluate")),
    ("evaluate --limit 5", ("--limit", "key=value", "--multirun")),
    ("evaluate --multirn", ("--multirn", "Did you mean --multirun?")),
    ("evaluate --cfg everything", ("--cfg everything", "job|hydra|all")),
    ("evaluate --config-dir", ("--config-dir", "FOLDER")),
    ("evaluate --config-dir nowhere", ("nowhere", "model/<name>.yaml")),
    ("evaluate --config-name nothing", ("nothing.yaml", "--config-dir")),
    # lists
    ("lst", ("lst", "Did you mean list or sft?")),
    ("tasks", ("tasks: not a job", "Did you mean list tasks?")),
    ("list", ("of what?", "models, tasks, languages, data, experiments")),
    ("list task", ("list task: no such list", "Did you mean tasks?")),
    ("list langauges sw", ("langauges", "Did you mean languages?")),
    ("list tasks --multirun", ("--multirun", "--config-dir")),
    ("list tasks --config-dir nowhere", ("nowhere", "model/<name>.yaml")),
    # keys
    ("evaluate limt=5", ("limt=5", "Did you mean limit", "batch_size")),
    ("evaluate model.dtpye=float32", ("model.dtpye", "Did you mean model.dtype?", "adapter")),
    ("evaluate layers=[17,0]", ("layers=[17,0]", "transplant.layers")),
    ("evaluate tasks=xcopa", ("tasks=xcopa", "task")),
    ("evaluate nothing.like.it=1", ("nothing.like.it", "limit")),
    ("evaluate limit.x=1", ("limit.x", "limit")),
    ("evaluate +typo=1", ("typo=1", "limit")),
    ("evaluate ++model.typo=1", ("model.typo=1", "dtype")),
    ("evaluate ~seed", ("~seed", "null")),
    ("evaluate source_prompt=hello", ("source_prompt=hello", "output_dir")),  # a key of another job
    ("evaluate xcopa", ("xcopa", "Did you mean task=xcopa?", "key=value")),
    ("evaluate nonsense", ("nonsense", "key=value")),
    ("evaluate =3", ("=3", "limit")),
    ("evaluate limit==3", ("limit==3", "quotes")),
    (
        "reproduce run=nowhere sett=[model.path=x]",
        ("sett=[model.path=x]", "no key sett. Did you mean set?", "run=nowhere"),
    ),
    ("evaluate output_dir=é", ("output_dir=é", """'output_dir="é"'""")),
    ("evaluate task.tasks=[x_{lang}]", ("task.tasks=[x_{lang}]", """'task.tasks=["x_{lang}"]'""")),
    # runs to pass on
    ("export", ("run is missing", "folder, bundle or short name")),
    ("export run=nowhere", ("run=nowhere", "a bundle (a .zip", "short name")),
    ("export run=3fa9c1", ("run=3fa9c1", "no finished run below outputs")),
    (
        "export run=a_file to=hf://me/x.zip largest=-1",
        ("to=hf://me/x.zip", "hf://datasets/", "largest=-1.0", "0 or more"),
    ),
    ("export run=wandb://me", ("run=wandb://me", "wandb://<entity>/<project>/<name>")),
    ("diff a_file", ("b is missing", "folder, bundle or short name")),
    ("diff nowhere nothing.zip", ("a=nowhere", "b=nothing.zip")),
    ("diff a_file a_file a_folder", ("a_folder", "key=value")),
    ("diff a_file a_file tolerance=-1", ("tolerance=-1.0", "0 or more")),
    # groups and choices
    ("evaluate model=gema3_270m", ("model=gema3_270m", "Did you mean gemma3_270m", "smollm2_135m", "model.path=")),
    ("evaluate model=null", ("model=null", "gemma3_270m")),
    ("evaluate model=", ("model=", "gemma3_270m")),
    ("evaluate model=[a,b]", ("model=[a,b]", "gemma3_270m")),
    ("evaluate model=llama", ("model=llama", "Did you mean llama", "xtransplant list models")),
    ("evaluate model=Qwen/Qwen3-8B", ("model=Qwen/Qwen3-8B", "Did you mean qwen3_8b")),
    ("evaluate task=xkopa", ("task=xkopa", "Did you mean xcopa", "cldr", "xtransplant list tasks")),
    ("evaluate task=XCOPA", ("task=XCOPA", "Did you mean xcopa")),
    ("evaluate task=xnli", ("task=xnli", "no prompt", "Use task=paper_xnli_mc")),
    ("evaluate transplant=mlp", ("transplant=mlp", "vanilla", "ffn", "attn")),
    ("evaluate transplant=atn", ("transplant=atn", "Did you mean attn")),
    ("evaluate transplant=generation", ("transplant=generation", "Did you mean paper_generation?")),
    ("evaluate language_pair=english-swahili", ("language_pair=english-swahili", "Did you mean en-sw?")),
    ("evaluate language_pair=en-zh-cn", ("language_pair=en-zh-cn", "Did you mean en-zh?", "en-zh-Hant")),
    ("evaluate language_pair=en_sw", ("language_pair=en_sw", "Did you mean en-sw?", "xtransplant list languages")),
    ("evaluate language_pair=EN-SW", ("language_pair=EN-SW", "Did you mean en-sw?")),
    ("evaluate language_pair=turkish", ("language_pair=turkish", "Did you mean en-tr?")),
    ("evaluate model@task=hf", ("model@task=hf", "model=<choice>")),
    ("evaluate experiment=mine", ("experiment=mine", "transplant")),
    ("evaluate hydra/launcher=slurm9", ("slurm9", "basic")),
    ("evaluate hydra.nothing=1", ("hydra.nothing", "HydraConf")),
    ("evaluate hydra.searchpath=[file:///nowhere]", ("file:///nowhere", "folders that exist")),
    # types
    ("evaluate limit=many", ("limit=many", "a whole number or null")),
    ("evaluate limit=1.5", ("limit=1.5", "a whole number or null")),
    ("evaluate limit=true", ("limit=true", "a whole number or null")),
    ("evaluate seed=", ("seed=", "a whole number")),
    ("evaluate seed=null", ("seed=null", "a whole number")),
    ("evaluate overwrite=2", ("overwrite=2", "true or false")),
    ("evaluate overwrite=perhaps", ("overwrite=perhaps", "true or false")),
    ("evaluate model.dtype=fp8", ("model.dtype=fp8", "float32, bfloat16")),
    ("evaluate transplant.component=mlp", ("transplant.component=mlp", "ffn, attn or attn_as_released")),
    ("evaluate transplant.site=middle", ("transplant.site=middle", "module or branch")),
    ("evaluate split=test", ("split=test", "all, sample or unseen")),
    ("evaluate task.tasks=3", ("task.tasks=3", "[text")),
    ("evaluate task.languages=[en]", ("task.languages=[en]", "{name: text")),
    ("evaluate task.languages.xx=[1]", ("task.languages.xx=[1]", "text")),
    ("evaluate task.min_gold_agreement=most", ("task.min_gold_agreement=most", "a number")),
    ("evaluate model={dtype:fp8}", ("model.dtype=fp8", "float32")),
    ("evaluate model.name=null", ("model.name=null", "text")),
    ("summarize runs=outputs", ("runs: outputs matches no folder", "outputs/evaluate/*")),
    # tracking
    ("evaluate tracking=mlflow", ("tracking=mlflow", "none, wandb, wandb_offline")),
    ("evaluate tracking=wandb tracking.mode=later", ("tracking.mode=later", "online, offline or disabled")),
    ("evaluate tracking.mode=offline", ("tracking.mode=offline", "nothing is tracked", "tracking=wandb")),
    ("evaluate tracking=none tracking.tags=[a]", ("tracking.tags=[a]", "tracking=wandb")),
    ("evaluate -m tracking.project=a/b limit=0", ("2 faults", "tracking.project=a/b", "without /", "limit=0")),
    ("grid tracking=wandb tracking.entity=a/b", ("tracking.entity=a/b", "or null")),
    ("evaluate tracking=wandb 'tracking.tags=[\" \"]'", ("tracking.tags", "1 to 64 characters")),
    (f"evaluate tracking=wandb tracking.group={'g' * 129}", ("tracking.group", "at most 128")),
    # several values
    ("evaluate seed=1,2", ("seed=1,2", "-m", "[a,b]")),
    ("evaluate -m seed=1,two", ("seed=two", "a whole number")),
    ("evaluate -m language_pair=en-sw,sw", ("language_pair=sw", "en-sw")),
    ("evaluate -m model=glob(zz*)", ("model=glob(zz*)", "gemma3_270m")),
    ("evaluate -m seed=interval(1,2)", ("seed=interval(1,2)", "range(")),
    ("evaluate -m transplant.layers=null,[18,0]", ("layer 18", "0 to 17")),
    # values
    ("evaluate limit=0", ("limit=0", "1 or more")),
    ("evaluate limit=-3", ("limit=-3", "1 or more")),
    ("evaluate batch_size=0", ("batch_size=0", "1 or more")),
    ("evaluate seed=-1", ("seed=-1", "0 or more")),
    ("evaluate task.num_fewshot=-1", ("task.num_fewshot=-1", "0 or more")),
    ("evaluate task.min_gold_agreement=1.1", ("task.min_gold_agreement=1.1", "from 0 to 1")),
    ("evaluate task.min_gold_agreement=nan", ("task.min_gold_agreement=nan", "from 0 to 1")),
    ("evaluate task.fewshot_as_multiturn=true", ("fewshot_as_multiturn", "apply_chat_template=true")),
    ("evaluate task.key=", ("task.key=", "row")),
    ("evaluate output_dir=", ("output_dir=", "folder")),
    ("evaluate output_dir=a_file/below", ("output_dir=a_file/below", "a_file is a file", "output_dir=outputs")),
    ("evaluate output_dir=a_file", ("output_dir=a_file", "is a file")),
    ("evaluate output_dir=/proc/below", ("output_dir=/proc/below", "nothing can be written")),
    ("summarize output=a_file", ("output=a_file", "overwrite=true")),
    ("summarize output=.", ("output=.", "a folder", "summary.txt")),
    ("summarize format=html", ("format=html", "text, csv, markdown or latex")),
    ("summarize runs=[nowhere/*]", ("nowhere/*", "outputs/evaluate/*")),
    ("compare", ("runs: outputs/evaluate matches no folder", "outputs/evaluate/*")),
    ("compare runs=[nowhere,none/*] format=html", ("3 faults", "nowhere", "none/*", "text, csv, markdown or latex")),
    ("compare output=a_file aginst=sft", ("a_file", "overwrite=true", "Did you mean against?")),
    ("doctor source_prompt=", ("source_prompt=", "empty")),
    ("doctor target_prompt=' '", ("target_prompt", "empty")),
    # layers
    ("evaluate transplant.layers=[18,0]", ("layer 18", "18 layers", "0 to 17", "[17,0]")),
    ("evaluate transplant.layers=[0,-19]", ("layer -19", "-18 to -1")),
    ("evaluate transplant.layers=[1,2,3]", ("[1, 2, 3]", "two layers")),
    ("evaluate transplant.layers=last", ("last", "two layers")),
    ("evaluate transplant.layers=17", ("17", "two layers")),
    ("evaluate transplant.layers=[middle,first]", ("middle", "two layers")),
    ("evaluate transplant.layers=[1.5,0]", ("1.5", "two layers")),
    ("evaluate transplant=attn transplant.layers=[first]", ("first", "two layers")),
    ("doctor transplant.layers=[0,18]", ("layer 18", "0 to 17")),
    # grids and what reads them
    ("grid transplant.component=mlp", ("transplant.component=mlp", "ffn, attn", "[ffn,attn]")),
    ("grid transplant.component=[ffn,ffn]", ("transplant.component=[ffn,ffn]", "different")),
    ("grid transplant.layers=[1,2]", ("transplant.layers", "component, site, control")),
    ("grid transplant.control=nought", ("transplant.control=nought", "random_document", "noise")),
    # what departs from the paper's transplant
    ("evaluate transplant.layers=[[17,0],[13,0]]", ("two pairs", "same target layer", "[[17,0],[17,1]]")),
    ("evaluate transplant.layers=[[17,0],[18,1]]", ("layer 18", "0 to 17")),
    ("evaluate transplant.layers=[[17,0],13]", ("two layers", "several pairs")),
    ("evaluate transplant.mode=subtract", ("transplant.mode=subtract", "replace, add or interpolate")),
    ("evaluate transplant.strength=0.5", ("transplant.strength=0.5", "transplant.mode=interpolate")),
    ("grid transplant.mode=add transplant.strength=nan", ("transplant.strength=nan", "a number")),
    ("evaluate transplant.positions=0", ("transplant.positions=0", "1 or more", "all")),
    ("evaluate transplant.positions=some", ("transplant.positions=some", "1 or more", "all")),
    ("grid transplant.positions=all", ("transplant.positions=all", "for evaluate")),
    ("evaluate transplant.scope=always", ("transplant.scope=always", "first_token or every_step")),
    ("evaluate transplant.control=zero transplant.mode=add", ("transplant.control=zero", "nothing would change")),
    ("evaluate transplant.control=zero transplant.match_norm=true", ("transplant.control=zero", "match_norm")),
    ("evaluate transplant.mean_over=[xx]", ("transplant.mean_over=[xx]", "languages of the task", "sw")),
    ("evaluate transplant.mean_over=[en]", ("transplant.mean_over=[en]", "the pair's source (en) not among them")),
    ("grid transplant.mean_over=[sw,sw]", ("transplant.mean_over=[sw,sw]", "different languages")),
    ("evaluate transplant.control=self transplant.mean_over=[sw]", ("transplant.mean_over", "transplant.control=self")),
    ("evaluate prompt=both transplant.control=random_document", ("random_document only with prompt=target",)),
    (
        "evaluate task=paper_xcopa language_pair=en-sw transplant.mean_over=[it]",
        ("transplant.mean_over", "paper_xcopa_sw_it"),
    ),
    (
        "evaluate task=blend language_pair=ko-en transplant.mean_over=[es]",
        ("transplant.mean_over=es", "other questions"),
    ),
    (
        "evaluate task=klar language_pair=en-tr task.source_tasks=[klar_es] transplant.mean_over=[fr]",
        ("averaged with themselves", "{lang}"),
    ),
    (
        "evaluate limit=2 transplant.mode=add",
        ("error: transplant.mode=add has no effect without transplant.layers; give e.g. transplant.layers=",),
    ),
    ("evaluate transplant.control=zero", ("error: transplant.control=zero has no effect without transplant.layers",)),
    (
        "evaluate transplant.match_norm=true transplant.positions=2",
        ("error: transplant.match_norm=true, transplant.positions=2 have no effect",),
    ),
    ("evaluate transplant=attn transplant.layers=null transplant.site=branch", ("transplant.site=branch has no",)),
    ("evaluate -m transplant.mode=replace,add,interpolate", ("error: transplant.mode=add has no effect",)),
    ("grid transplant.mean_over=[de,xx] language_pair=en-sw", ("error: ", "not xx. cldr has: ar, de")),
    (
        "evaluate task=paper_xcopa language_pair=tr-en",
        ("error: language_pair=tr-en: paper_xcopa goes from en only: e.g. en-tr.",),
    ),
    (
        "evaluate task=paper_globalopinionqa language_pair=en-de",
        ("paper_globalopinionqa goes into en only: e.g. de-en.",),
    ),
    ("evaluate task=blend language_pair=ko-es", ("language_pair=ko-es: blend does not go that way: e.g. en-es.",)),
    ("grid prompt=both", ("prompt=both", "prompt is a key of evaluate")),
    ("doctor transplant.positions=0", ("transplant.positions=0", "1 or more")),
    ("doctor transplant.positions=abc", ("transplant.positions=abc", "1 or more")),
    (
        "doctor transplant.control=zero transplant.mean_over=[de]",
        ("transplant.control=zero", "mean_over=[de]"),
    ),
    ("evaluate -m experiment=paper_v2/xcopa,paper_v2/xnli", ("one experiment at a time",)),
    ("grid -m experiment=paper_v2/xcopa", ("error: experiment=paper_v2/xcopa is for evaluate, not grid.",)),
    ("select -m experiment=paper_v2/xcopa grid=.", ("error: experiment=paper_v2/xcopa is for evaluate, not select.",)),
    (
        "evaluate -m +experiment=embedded/languages",
        ("error: experiment=embedded/languages is for grid, not evaluate.",),
    ),
    ("evaluate -m experiment=paper_v1/xcopa", ("is for grid first", "split=unseen 'selection=outputs/paper_v1_xcopa")),
    ("evaluate prompt=source", ("prompt=source", "target or both")),
    ("evaluate prompt=both task.apply_chat_template=true", ("prompt=both", "two chats")),
    ("grid grid.pairs=some", ("grid.pairs='some'", "source_last", "[[17,0],[13,2]]")),
    ("grid grid.pairs=[1,2]", ("grid.pairs=1", "pairs of layers", "[[17,0],[13,2]]")),
    ("grid grid.pairs=[[18,0]]", ("layer 18", "0 to 17")),
    ("grid grid.pairs=[]", ("grid.pairs=[]", "diagonal")),
    ("grid grid.budget=0", ("grid.budget=0", "up to 1", "null")),
    ("grid grid.budget=2", ("grid.budget=2", "up to 1")),
    ("grid grid.memory=0", ("grid.memory=0", "above 0")),
    ("grid batch_size=4", ("batch_size=4", "limit")),
    # fine-tuning
    ("sft data.split=unseen", ("data.split=unseen", "sample", "may not be trained on what it is evaluated on")),
    ("sft data.split=all", ("data.split=all", "sample")),
    ("sft split=unseen", ("split=unseen", "sft trains on the sample half")),
    ("sft language_pair=en-sw", ("language_pair", "data.languages=[en,sw]")),
    ("sft limit=5", ("limit=5", "data.limit")),
    ("sft data.languages=[en,xx]", ("data.languages=[en,xx]", "cldr_language has no xx. It has: ar, de")),
    ("sft data.languages=[en,swahili]", ("data.languages=[en,swahili]", "Did you mean sw?")),
    ("sft data.languages=[]", ("data.languages=[]", "one language or more")),
    ("sft data.languages=[en,en]", ("data.languages=[en,en]", "each once")),
    ("sft data=aia", ("data=aia", "Did you mean aya?", "bactrian_x", "data=local data.path=")),
    ("sft data=aya data.languages=[en,xx]", ("data.languages=xx", "aya has no such language", "data.codes={xx:")),
    ("sft data=aya data.languages=[en,swahili]", ("data.languages=swahili", "Did you mean sw?")),
    ("sft data=local", ("data.path is missing", "hub id, folder or file")),
    ("sft data=local data.path=nowhere/at/all", ("data.path=nowhere/at/all", "org/name")),
    ("sft data=local data.path=a_folder", ("data.path=a_folder", "no file of en", "<language>.jsonl")),
    ("sft data=local data.path=a_file", ("data.path=a_file", ".parquet")),
    ("sft method=qlora", ("method=qlora", "lora or full")),
    ("sft steps=0", ("steps=0", "1 or more")),
    ("sft epochs=2", ("steps=100 and epochs=2", "Give steps=null epochs=2")),
    ("sft steps=null", ("steps=null", "null only with epochs")),
    ("sft patience=5", ("patience=5", "steps=100 and eval_steps=20", "never end the training")),
    ("sft method=full lora.rank=4", ("lora.rank=4 has no effect without an adapter", "method=lora")),
    ("sft lora.rank=0 lora.dropout=1 lora.targets=q_proj", ("3 faults", "lora.rank=0", "lora.dropout=1", "all-linear")),
    ("sft learning_rate=0 warmup=1 weight_decay=-1 seed=-1", ("4 faults", "learning_rate=0", "warmup=1", "seed=-1")),
    ("sft batch_size=0 accumulation=0 eval_steps=0 checkpoint_steps=0 max_length=1", ("5 faults", "max_length=1")),
    ("sft patience=3 data.held_out=0", ("patience=3", "data.held_out above 0")),
    ("sft data.held_out=1", ("data.held_out=1", "up to but not 1")),
    ("sft data.mixture=weights", ("data.weights={}", "a share of each language", "data.weights={en:1}")),
    ("sft data.weights={en:1}", ("data.weights={en:1", "data.mixture=weights")),
    ("sft data.apply_chat_template=true", ("data.apply_chat_template=true", "task.apply_chat_template=true")),
    ("sft model.device=cuda:1 model.device_map=auto", ("model.device=cuda:1", "model.device_map=auto", "the trainer")),
    ("sft model.adapter=a_folder", ("model.adapter=a_folder", "method=full")),
    ("sft task=arc_easy", ("task=arc_easy",)),
    ("sft tracking.project=x", ("tracking.project=x", "tracking=wandb")),
    ("sft output_dir=a_file", ("output_dir=a_file", "is a file")),
    ("select", ("grid is missing", "folder")),
    ("select grid=nowhere", ("nowhere", "matches no folder", "outputs/grid")),
    ("select grid=3", ("grid: 3", "outputs/grid")),
    ("select grid=. strategy=best", ("strategy=best", "overall", "router")),
    ("select grid=. component=mlp", ("component=mlp", "ffn", "attn")),
    ("select grid=. candidates=0", ("candidates=0", "all")),
    ("select grid=. alpha=2", ("alpha=2", "between 0 and 1")),
    ("select grid=. strategy=fixed", ("fixed=null", "understanding")),
    ("select grid=. strategy=fixed fixed=best", ("fixed=best", "understanding")),
    ("strategies grid=.", ("unseen is missing", "folder")),
    ("strategies grid=. unseen=nowhere controls=[nowhere]", ("2 faults", "unseen: nowhere", "controls: nowhere")),
    ("analyze grid=[nowhere,.]", ("grid: nowhere", "outputs/grid")),
    ("evaluate selection=nowhere.json", ("selection=nowhere.json", "xtransplant select")),
    ("evaluate selection_of_base=true", ("selection_of_base=true", "give it as selection", "model.adapter")),
    ("evaluate selection=nowhere.json transplant.layers=[1,0]", ("2 faults", "both say", "nowhere.json")),
    # models
    ("evaluate model=hf", ("model.path is missing", "hub id")),
    ("evaluate model=hf model.path=", ("model.path=", "hub id")),
    ("evaluate model=hf model.path=nowhere/at/all", ("nowhere/at/all", "folder")),
    ("evaluate model=hf model.path=a_folder", ("a_folder", "config.json")),
    ("evaluate model=hf model.path=a_file", ("a_file", "GGUF")),
    ("evaluate model=hf model.path=embedded:gpt9", ("embedded:gpt9", "gemma3_270m")),
    ("evaluate model.device=gpu", ("model.device=gpu", "cuda")),
    ("evaluate model.device_map=everywhere", ("model.device_map=everywhere", "auto")),
    ("evaluate model.attn_implementation=fast", ("model.attn_implementation=fast", "sdpa")),
    ("evaluate model.adapter=nowhere/at/all", ("model.adapter=nowhere/at/all", "PEFT")),
    ("evaluate model.modules.lyers=a.b", ("model.modules.lyers=a.b", "layers, attn, ffn")),
    # tasks, languages, data
    ("evaluate language_pair=en-xx", ("language_pair.target=xx", "cldr", "sw", "xtransplant list languages")),
    ("evaluate language_pair=en-jp", ("language_pair.target=jp", "did you mean ja?")),
    ("evaluate language_pair.target=German", ("language_pair.target=German", "did you mean de?")),
    ("evaluate task=xcopa language_pair=en-de", ("language_pair.target=de", "sw")),
    ("evaluate task.tasks=[arc_easyy]", ("arc_easyy", "Did you mean arc_easy")),
    ("evaluate task.tasks=[]", ("task.tasks=[]", "at least one")),
    ("evaluate 'task.tasks=[\"x_{code}\"]'", ("x_{code}", "{lang}")),
    ("evaluate task.source_tasks=[cldr_language_en]", ("task.source_tasks", "one source task for each")),
    ("evaluate task.include_path=[nowhere]", ("nowhere", "task.include_path")),
    ("evaluate task=xcopa language_pair=en-sw task.data_dir=nowhere", ("task.data_dir=nowhere", "existing")),
    ("evaluate task=xcopa language_pair=en-sw task.data_dir=a_folder", ("task.data_dir=a_folder", "sw.test.jsonl")),
]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder but for a file and a folder to name, and no way to a model or a task."""
    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("something", encoding="utf-8")
    Path("a_folder").mkdir()
    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)
    for name in JOBS:
        module = next(each for each in (jobs, grid_jobs, share_jobs) if hasattr(each, name))
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("not refused"))
    find = _find_tasks_once
    monkeypatch.setattr(families, "find_tasks", lambda include_path=(): find(tuple(include_path)))


_find_tasks = families.find_tasks


@functools.cache
def _find_tasks_once(include_path: tuple[str, ...]) -> dict[str, Path]:
    """Reading the names of 13,000 tasks is most of a refusal's time."""
    return _find_tasks(include_path)


def words(line: str) -> list[str]:
    """A command line's words; quotes keep blanks, as in a shell, but other quotes stay as they are."""
    if "'" not in line:
        return line.split()
    return shlex.split(line)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line that must be refused, and returns the message."""

    def run(*arguments: str) -> str:
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        assert code == 2
        assert out == ""
        assert err.startswith("error: ")
        assert "Traceback" not in err
        return err

    return run


def holds(message: str, parts: Iterable[str]) -> None:
    for part in parts:
        assert part in message


def test_there_are_many_cases() -> None:
    assert len({line for line, _ in CASES}) >= 100


@pytest.mark.parametrize(("line", "parts"), CASES, ids=[line for line, _ in CASES])
def test_refused(line: str, parts: tuple[str, ...], refused: Refused) -> None:
    holds(refused(*words(line)), parts)


def test_all_faults_at_once(refused: Refused) -> None:
    message = refused(
        *"evaluate limt=5 model=nope language_pair=en-xx transplant.component=mlp seed=-1 vanilla".split(),
        *"batch_size= output_dir=a_file task.num_fewshot=-1 +typo=1".split(),
    )
    assert "10 faults" in message
    given = (
        "limt=5",
        "model=nope",
        "=xx",
        "component=mlp",
        "seed=-1",
        "vanilla",
        "batch_size=",
        "a_file",
        "-1",
        "typo",
    )
    holds(message, given)


ZERO, DOCUMENT = "zero only with transplant.mode=replace", "random_document only with prompt=target"


@pytest.mark.parametrize(
    ("line", "said", "unsaid"),
    [
        ("transplant.layers=[13,2] transplant.control=zero transplant.mode=add", ZERO, DOCUMENT),
        ("transplant.layers=[13,2] transplant.control=random_document prompt=both", DOCUMENT, ZERO),
        ("transplant.layers=[13,2] transplant.mean_over=[en,sw]", "the pair's source (en)", "one source task"),
        ("transplant.layers=[13,2] transplant.mean_over=[de,xx]", "languages of the task, not xx", "the pair's source"),
    ],
)
def test_the_rule_that_is_broken_is_said_alone(line: str, said: str, unsaid: str, refused: Refused) -> None:
    message = refused("evaluate", *line.split())
    assert said in message
    assert unsaid not in message and "faults:" not in message


def test_both_layers_are_judged(refused: Refused) -> None:
    holds(refused("evaluate", "transplant.layers=[40,-50]"), ("2 faults", "layer 40", "layer -50"))


def test_what_a_fault_leaves_unclear_is_not_judged(refused: Refused) -> None:
    """The default model has 18 layers; the one that was meant may have 40."""
    assert "out of range" not in refused("evaluate", "model=llama_40", "transplant.layers=[39,0]")
    assert "out of range" not in refused("evaluate", "model.pth=llama_40", "transplant.layers=[39,0]")
    assert "xx" not in refused("evaluate", "task=mine", "language_pair=en-xx").replace("task=mine", "")


def test_same_fault_of_many_runs_is_said_once(refused: Refused) -> None:
    message = refused("evaluate", "-m", "seed=1,2,3", "limit=0")
    assert message.count("limit=0") == 1


# --- Files of the user's ---------------------------------------------------------------------------------------------


MODEL = "name: mine\npath: embedded:gemma3_270m\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (MODEL + "dtpye: float32\n", ("model.dtpye=float32", "Did you mean model.dtype?")),
        (MODEL + "dtype: fp8\nlayrs: 3\n", ("2 faults", "model.dtype=fp8", "bfloat16", "model.layrs=3")),
        (MODEL + "modules: [a]\n", ("model.modules=[a]", "{name: text")),
        ("- a\n- b\n", ("[a,b]", "key: value")),
        ("name: [a\n", ("Not YAML", "line 1")),
        (MODEL + "defaults: [nothing]\n", ("model/nothing", "Could not load")),
    ],
)
def test_bad_model_file(text: str, parts: tuple[str, ...], refused: Refused, write: Callable[[str, str], None]) -> None:
    write("model/broken.yaml", text)
    holds(
        refused("evaluate", "-cd", "mine", "model=broken"),
        ("mine/model/broken.yaml" if "nothing" not in text else "", *parts),
    )


def test_faults_of_several_files_at_once(refused: Refused, write: Callable[[str, str], None]) -> None:
    write("model/broken.yaml", MODEL + "dtype: fp8\n")
    write("task/broken.yaml", "name: mine\ntasks: 3\nkye: id\n")
    write("experiment/broken.yaml", "# @package _global_\nlimt: 3\n")
    message = refused("evaluate", "-cd", "mine", "model=broken", "task=broken", "+experiment=broken")
    holds(message, ("4 faults", "model.dtype=fp8", "task.tasks=3", "task.kye=id", "limt=3", "experiment/broken.yaml"))


def test_file_that_leaves_keys_out(refused: Refused, write: Callable[[str, str], None]) -> None:
    write("task/short.yaml", "name: mine\n")
    holds(refused("evaluate", "-cd", "mine", "task=short"), ("task.tasks is missing", "task.key is missing"))


def test_bad_root_file(refused: Refused, write: Callable[[str, str], None]) -> None:
    write("root.yaml", "defaults:\n  - evaluate\n  - override model: nope\n")
    holds(refused("evaluate", "-cd", "mine", "-cn", "root"), ("model/nope", "gemma3_270m"))
    write("bare.yaml", "limt: 3\n")  # without our schema
    holds(refused("evaluate", "-cd", "mine", "-cn", "bare"), ("limt",))


# --- Surroundings ----------------------------------------------------------------------------------------------------


def test_data_folder_of_the_environment(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTRANSPLANT_DATA", "/nowhere")
    holds(refused("evaluate", "task=xcopa", "language_pair=en-sw"), ("XTRANSPLANT_DATA=/nowhere", "task.data_dir"))


def test_missing_package(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else real(name))
    holds(refused("evaluate"), ("gguf", "install"))


@pytest.mark.skipif(os.name == "nt", reason="file modes")
def test_folder_without_leave_to_write(refused: Refused) -> None:
    Path("a_folder").chmod(0o500)
    if os.access("a_folder", os.W_OK):
        pytest.skip("this user may write anywhere")
    holds(refused("evaluate", "output_dir=a_folder"), ("output_dir=a_folder", "nothing can be written"))


def test_refusal_while_a_job_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the data can show, e.g. that two tasks are not parallel."""

    def evaluate(_: object) -> None:
        raise XTransplantError("not parallel: 3 of 9 documents have no counterpart")

    monkeypatch.setattr(jobs, "evaluate", evaluate)
    assert cli.main(["evaluate"]) == 2
    assert capsys.readouterr().err == "error: not parallel: 3 of 9 documents have no counterpart\n"


# --- As a user sees it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("evaluate limit=0", "limit=0"),
        ("evaluate transplant.layers=[99,0] language_pair=en-xx limt=3", "3 faults"),
        ("evaluate task.tasks=[arc_easyy]", "arc_easyy"),
        ("evaluate -m language_pair=en-sw,en-xx limit=-1", "limit=-1"),
        ("doctor model=nope", "model=nope"),
    ],
)
def test_a_process_refuses_within_8_seconds(line: str, part: str) -> None:
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "xtransplant.cli", *line.split()], capture_output=True, text=True, timeout=60
    )
    seconds = time.perf_counter() - started
    assert result.returncode == 2
    assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert seconds < 8


def test_tracking_needs_its_package(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "wandb" else find(name))
    message = refused("evaluate", "tracking=wandb", "limit=0")
    assert "2 faults" in message
    assert "the package wandb is not installed. pip install wandb, or give tracking=none" in message
    # What nobody asked for is left out.
    for given in (["-m"], ["tracking=wandb", "tracking.mode=disabled"]):
        message = refused("evaluate", *given, "limit=0")
        assert message.startswith("error: limit=0") and "wandb" not in message
