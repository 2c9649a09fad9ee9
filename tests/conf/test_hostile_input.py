"""What a stranger may send: nothing of it runs, leaves its folder, reads the environment or takes all memory.

Each input is refused by one clear message that names it, or is harmless; a file that any code in it would write, the
canary, is never there. docs/security.md says what is trusted and how to allow what is refused.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from xtransplant import bundle, cli, disk, families, grid_jobs, jobs, pairing, record, selection
from xtransplant.config import LanguagePairConfig, Split, TaskConfig
from xtransplant.grid import Grid
from xtransplant.types import XTransplantError

CANARY = "canary"
SECRET = "what nobody else may know"  # in a file outside, and in the environment

TASK = """task: mine
dataset_path: json
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
"""
EVIL = f"""import pathlib
pathlib.Path({CANARY!r}).write_text('')
def run(*_, **__): pathlib.Path({CANARY!r}).write_text('')
"""
SLURM = "defaults: [override /hydra/launcher: submitit_slurm]\n"
OWN = [
    *("evaluate", "task=custom", "task.name=mine", "task.tasks=[mine]", "task.include_path=[tasks]", "task.key=id"),
    *("task.data_dir=data", 'task.data_files={test: "{lang}.jsonl"}', "language_pair=en-de"),
]
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
DEEP_JSON = "[" * 100_000
CALL = f"_target_: os.system, _args_: ['touch {CANARY}']"

Build = Callable[[Path], list[str]]
CASES: dict[str, tuple[Build, tuple[str, ...]]] = {}


def case(name: str, *parts: str) -> Callable[[Build], Build]:
    """A hostile input: what writes it and gives the command line, and what the message must hold."""

    def add(build: Build) -> Build:
        assert name not in CASES
        CASES[name] = build, parts
        return build

    return add


def put(path: str, content: str | bytes) -> None:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content.encode() if isinstance(content, str) else content)


# --- Task folders ----------------------------------------------------------------------------------------------------


def own_task(name: str, more: str, *parts: str, without: str = "", files: dict[str, str] | None = None) -> None:
    def build(here: Path) -> list[str]:
        kept = [line for line in TASK.splitlines() if not without or not line.startswith(without)]
        put("tasks/mine.yaml", "\n".join([*kept, more.replace("HERE", str(here))]) + "\n")
        put("tasks/evil.py", EVIL)
        for path, content in (files or {}).items():
            put(path, content)
        return OWN

    case(name, *(parts or ("task.allow_code=true")))(build)


own_task(
    "task: a function for a prompt", "doc_to_text: !function evil.run", "tasks/mine.yaml", "task.allow_code=true",
    without="doc_to_text",
)  # fmt: skip
own_task("task: a function for documents", "process_docs: !function evil.run")
own_task("task: a function deep in a list", "metric_list: [{metric: acc, aggregation: !function evil.run}]")
own_task("task: a function of the standard library", "process_results: !function os.system")
own_task("task: a function in few-shot settings", "fewshot_config: {sampler: !function evil.run}")
own_task(
    "task: a filter of its own", "filter_list: [{name: x, filter: [{function: custom, filter_fn: !function evil.run}]}]"
)
own_task(
    "task: a function that another value replaces", "process_docs: !function evil.run\nprocess_docs: null", "!function"
)
own_task("task: a function for a key", "metadata: {? !function evil.run : 1}", "!function")
own_task("task: a function among keys", "? !function evil.run\n: 1", "!function")
own_task("task: a function in a set", "metadata: !!set {? !function evil.run}", "!function")
own_task("task: a function in pairs", "metadata: !!pairs [a: !function evil.run]", "!function")
own_task("task: a class", "class: !function evil.run")
own_task("task: a class by its name", "class: os.system")
own_task("task: a data set made by a function", "custom_dataset: !function evil.run")
own_task("task: runs what the model writes", "unsafe_code: true")
own_task("task: a group, which builds others", "group: mine")
own_task("task: a metric that is a script", "metric_list: [{metric: evil}]", files={"evil/evil.py": EVIL})
own_task("task: a metric by its path", "metric_list: [{metric: ./evil}]", files={"evil/evil.py": EVIL})
own_task("task: a script for a known metric", "metric_list: [{metric: acc, hf_evaluate: true}]")
own_task("task: includes a file outside", "include: ../outside.yaml", files={"outside.yaml": "description: x\n"})
own_task("task: includes by an absolute path", "include: HERE/outside.yaml", files={"outside.yaml": "description: x\n"})
own_task(
    "task: includes a file with a function", "include: part", "tasks/part", "!function",
    files={"tasks/part": "process_docs: !function evil.run\n"},
)  # fmt: skip
own_task("task: pickled data", "dataset_path: pandas", "dataset_path: pandas", "parquet", without="dataset_path")
own_task("task: a database as data", "dataset_path: sql", "dataset_path: sql", without="dataset_path")
own_task("task: data anywhere on this machine", "dataset_kwargs: {data_files: /etc/passwd}", "/etc/passwd")
own_task("task: data beside its folder", "dataset_kwargs: {data_files: {test: ../secret.jsonl}}", "../secret.jsonl")
own_task("task: data from home", "dataset_kwargs: {data_files: ~/.netrc}", "~/.netrc")
own_task("task: data from an address", "dataset_kwargs: {data_files: 'https://evil.example/x'}", "https://evil.example")
own_task("task: data in a set", "dataset_kwargs: {data_files: !!set {/etc/passwd}}", "/etc/passwd")
own_task("task: data through a chain", "dataset_kwargs: {data_files: 'zip://x::/etc/passwd'}", "zip://x::/etc/passwd")
own_task("task: a folder of this machine", "dataset_path: /etc/ssl", "/etc/ssl", without="dataset_path")
own_task("task: writes its cache elsewhere", "dataset_kwargs: {cache_dir: elsewhere}", "cache_dir")
own_task("task: prompts of another file", "use_prompt: '/etc/x.yaml:p'", "/etc/x.yaml")
own_task("task: an object of Python's", "description: !!python/object/apply:os.system [touch canary]", "mine.yaml")
own_task("task: a YAML bomb", f"{BOMB}metadata: *l", "tasks/mine.yaml", "aliases")
own_task("task: YAML that is deep", f"metadata: {'[' * 5000}{']' * 5000}", "tasks/mine.yaml", "nested deeper")
own_task("task: YAML of three megabytes", f"metadata: {'x' * 3_000_000}", "tasks/mine.yaml", "MB")


@case("task: a name that is a path", "task: '../../mine'", "file's name")
def _(here: Path) -> list[str]:
    put("tasks/mine.yaml", TASK.replace("task: mine", "task: ../../mine"))
    return [each.replace("[mine]", "[../../mine]") for each in OWN]


@case("task: a link out of its folder", "lies outside of task.include_path")
def _(here: Path) -> list[str]:
    put("tasks/mine.yaml", f"include: part.txt\n{TASK}")
    put("outside.yaml", "process_docs: !function evil.run\n")
    Path("tasks/part.txt").symlink_to(here / "outside.yaml")
    return OWN


@case("task: a file that is a pipe", "lm-eval has no task 'mine'")
def _(here: Path) -> list[str]:
    Path("tasks").mkdir()
    os.mkfifo("tasks/mine.yaml")
    return OWN


@case("task: a file without an end", "lm-eval has no task 'mine'")
def _(here: Path) -> list[str]:
    Path("tasks").mkdir()
    Path("tasks/mine.yaml").symlink_to("/dev/zero")
    return OWN


@case("task: data files that lead out", "../secret.jsonl", "out of its folder")
def _(here: Path) -> list[str]:
    put("tasks/mine.yaml", TASK)
    return [each.replace("{lang}.jsonl", "../secret.jsonl") for each in OWN]


@case("data: files that lead out", "data.files=../secret.jsonl", "leads out")
def _(here: Path) -> list[str]:
    return ["sft", "data=local", "data.path=data", "data.files=../secret.jsonl"]


TEMPLATES = {
    "a class of Python's": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "the system's shell": f"{{{{ cycler.__init__.__globals__.os.system('touch {CANARY}') }}}}",
    "the names of a module": f"{{{{ lipsum.__globals__['os'].popen('touch {CANARY}') }}}}",
    "an attribute by a filter": "{{ ''|attr('__class__') }}{{ (''|attr('__class__')).mro() }}",
    "an attribute by a format": "{{ '{0.__class__.__mro__}'.format(question) }}",
    "an attribute by an index": "{{ question['__class__']['__mro__'] }}",
    "in the last document only": "{% if id == 'b' %}{{ ''.__class__.__mro__ }}{% endif %}{{ choices }}",
}


@pytest.mark.parametrize("key", ["doc_to_text", "doc_to_choice", "doc_to_target"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_runs_nothing(name: str, key: str) -> None:
    text = TASK.replace('"{{question}}"', "question") if key != "doc_to_text" else TASK
    kept = [line for line in text.splitlines() if not line.startswith(key)]
    put("tasks/mine.yaml", "\n".join([*kept, f"{key}: {json.dumps(TEMPLATES[name])}"]))
    task = TaskConfig("mine", ["mine"], None, ["tasks"], key="id", data_dir="data", data_files={"test": "{lang}.jsonl"})
    with pytest.raises(XTransplantError) as raised:
        for found in pairing.load(task, LanguagePairConfig("en", "de"), Split.all, None):
            found.questions()
            for doc in found.docs:
                found.target.doc_to_choice(doc)
                found.target.doc_to_target(doc)
    assert "__" in str(raised.value) and "template" in str(raised.value)
    assert not Path(CANARY).exists()


def test_ordinary_templates_give_what_they_gave() -> None:
    from jinja2 import StrictUndefined
    from lm_eval import utils

    families.sandbox_templates()
    families.sandbox_templates()
    doc = {"a": ["x", "y"], "n": 3, "q": " Wer? "}
    for template, text in {
        "{{q.strip()}}\n{{a|join(', ')}}\n": "Wer?\nx, y\n",
        "{% set more = a + ['z'] %}{{more[n - 1]}}{{'%05d' % n}}": "z00003",
        "{% for each in range(n) %}{{each}}{% endfor %}{{q|regex_replace('[^W]', '')}}": "012W",
        "{% set _ = a.append('z') %}{{a}}": "['x', 'y', 'z']",
    }.items():
        assert utils.apply_template(template, {**doc, "a": list(doc["a"])}) == text  # type: ignore[call-overload]
    assert utils.env.undefined is StrictUndefined


# --- Configs ---------------------------------------------------------------------------------------------------------


def config_file(
    name: str, path: str, content: str, *parts: str, line: str = "", more: dict[str, str] | None = None
) -> None:
    def build(here: Path) -> list[str]:
        for each, text in {path: content, **(more or {})}.items():
            put(f"mine/{each}", text.replace("HERE", str(here)))
        return [*"evaluate -cd mine".split(), *line.split()]

    case(name, *(parts or ("a file says so",)))(build)


def any_file(name: str, content: str, *parts: str, line: str = "transplant=evil", **more: str) -> None:
    """Whatever group a file is of, it may speak for all of the config. (One of experiments is composed twice.)"""
    path = "experiment/evil.yaml" if "experiment" in line else "transplant/evil.yaml"
    head = "" if content.startswith("# @package") else "# @package _global_\n"
    files = {each.replace("__", "/") + ".yaml": text for each, text in more.items()}
    config_file(f"config: {name}", path, head + content, *parts, line=line, more=files)


any_file("a callback of Hydra's", f"hydra: {{callbacks: {{x: {{{CALL}}}}}}}\n", "hydra.callbacks.x._target_=os.system")
any_file("a callback by its package", f"# @package hydra.callbacks.x\n{{{CALL}}}\n", "hydra.callbacks.x._target_")
any_file(
    "a callback by a choice",
    "defaults: [override /hydra/callbacks: evil]\n",
    "hydra.callbacks",
    hydra__callbacks__evil=f"x: {{{CALL}}}\n",
)
any_file(
    "a callback through a model",
    "defaults: [/model@hydra.callbacks.x: evil]\n",
    "hydra.callbacks",
    model__evil=f"{{{CALL}}}\n",
)
any_file(
    "a logger that is a call",
    f"hydra: {{job_logging: {{formatters: {{x: {{(): os.system, command: touch {CANARY}}}}}}}}}\n",
    "hydra.job_logging.formatters.x.()=os.system",
)  # fmt: skip
any_file("Hydra's own logger", "hydra: {hydra_logging: {filters: {x: {(): evil.run}}}}\n", "hydra.hydra_logging")
any_file("another sweeper", "hydra: {sweeper: {_target_: os.system}}\n", "hydra.sweeper._target_=os.system")
any_file("another launcher", f"hydra: {{launcher: {{{CALL}}}}}\n", "hydra.launcher._target_=os.system")
any_file(
    "shell for SLURM", f"{SLURM}hydra: {{launcher: {{setup: [touch canary]}}}}\n",
    "hydra.launcher.setup",
)  # fmt: skip
any_file(
    "options for sbatch", f"{SLURM}hydra: {{launcher: {{additional: {{x: y}}}}}}\n",
    "hydra.launcher.additional",
)  # fmt: skip
any_file(
    "another cluster",
    "defaults: [override /hydra/launcher: ray_cluster]\nhydra: {launcher: {address: evil:1}}\n",
    "address",
)
any_file(
    "variables of the environment", "hydra: {job: {env_set: {LD_PRELOAD: x.so}}}\n", "hydra.job.env_set.LD_PRELOAD"
)
any_file("another place for files", "hydra: {sweep: {dir: /tmp/elsewhere}}\n", "hydra.sweep.dir=/tmp/elsewhere")
any_file("leave to run code", "model: {trust_remote_code: true}\n", "model.trust_remote_code=true: a file says so")
any_file(
    "leave to run code, swept over", "hydra: {sweeper: {params: {model.trust_remote_code: true}}}\n",
    "model.trust_remote_code=true: a file says so",
    line="-m experiment=evil",
)  # fmt: skip
any_file("leave to load pickles", "model: {allow_pickle: true}\n", "model.allow_pickle=true: a file says so")
any_file("leave for a task's code", "task: {allow_code: true}\n", "task.allow_code=true: a file says so")
any_file("a file outside", "defaults: [/../../outside]\n", "evil.yaml", "outside of its folder")
any_file("the environment", "model: {name: '${oc.env:MY_TOKEN}'}\n", "model.name", "environment")
any_file(
    "the environment, by pieces",
    "model: {name: '${oc.${.licence}:MY_TOKEN}', licence: env}\n",
    "model.",
)
any_file("the environment in a list", "tracking: {tags: ['${oc.env:MY_TOKEN,x}']}\n", "tracking.tags", "environment")
any_file(
    "the environment as a default",
    "model: {path: 'evil/${oc.decode:${oc.env:MY_TOKEN}}'}\n",
    "model.path",
    "environment",
)
any_file("a YAML bomb", f"{BOMB}limit: 1\n", "evil.yaml", "aliases")
any_file("YAML that is deep", f"limit: {'[' * 50_000}\n", "evil.yaml", "nested deeper")
any_file("YAML that holds itself", "task: &a {languages: *a}\n", "evil.yaml", "holds itself")
any_file("YAML of three megabytes", f"limit: 1 #{'x' * 3_000_000}\n", "evil.yaml", "MB")
any_file("an object of Python's", "limit: !!python/object/apply:os.system [touch canary]\n", "constructor")
config_file(
    "config: folders of others", "root.yaml", "defaults: [evaluate, _self_]\nhydra: {searchpath: ['file://HERE/other']}\n",
    "hydra.searchpath", line="-cn root", more={"../other/model/x.yaml": "name: x\n"},
)  # fmt: skip
config_file(
    "config: a launcher's preset that is a call", "hydra/launcher/evil.yaml", f"{{{CALL}}}\n",
    "hydra.launcher._target_", line="-m limit=1 hydra/launcher=evil",
)  # fmt: skip
config_file(
    "config: a logger's preset that is a call", "hydra/job_logging/evil.yaml", "formatters: {x: {(): os.system}}\n",
    "hydra.job_logging", line="hydra/job_logging=evil",
)  # fmt: skip
config_file(
    "config: a file swept to", "model/evil.yaml", "name: x\npath: a/b\nallow_pickle: true\n",
    "model.allow_pickle", line="-m model=gemma3_270m,evil",
)  # fmt: skip


@case("config: a file without an end", "cannot be read: not a file")
def _(here: Path) -> list[str]:
    Path("mine/model").mkdir(parents=True)
    Path("mine/model/evil.yaml").symlink_to("/dev/zero")
    return ["list", "models", "--config-dir", "mine"]


@case("config: a bomb in a further folder", "evil.yaml", "aliases")
def _(here: Path) -> list[str]:
    put("mine/model/evil.yaml", BOMB)
    return ["evaluate", f"hydra.searchpath=[file://{here}/mine]"]


@case("command line: the environment", "model.path", "environment", "$NAME")
def _(here: Path) -> list[str]:
    return ["evaluate", "model.path=evil/${oc.env:MY_TOKEN}"]


for _name, _line in {
    "a line end in a partition": "hydra.launcher.partition='a\ntouch canary'",
    "a line end in an option": "hydra.launcher.additional={gres: 'x\ntouch canary'}",
    "a line end in a line of shell": "hydra.launcher.setup=['x\ntouch canary']",
    "an escape in an account": "hydra.launcher.account='a\x1b[2J'",
}.items():
    case(f"launcher: {_name}", "hydra.launcher.", "control character")(
        lambda here, line=_line: ["evaluate", "-m", "limit=1,2", "hydra/launcher=submitit_slurm", line]  # type: ignore[misc]
    )


# --- Models ----------------------------------------------------------------------------------------------------------


def model_folder(name: str, config: str, *parts: str, files: dict[str, str | bytes] | None = None) -> None:
    def build(here: Path) -> list[str]:
        for path, content in {
            "config.json": config, "model.safetensors": b"", "tokenizer.json": "{}", **(files or {})
        }.items():  # fmt: skip
            put(f"model/{path}", content)
        return ["evaluate", "model=hf", "model.path=model", "model.name=evil"]

    case(f"model: {name}", "model.path=model", *parts)(build)


LLAMA = '{"model_type": "llama", "num_hidden_layers": 2'
model_folder(
    "code of its own", '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}',
    "model.trust_remote_code=true", files={"evil.py": EVIL},
)  # fmt: skip
model_folder(
    "code of its own, named oddly", '{"model_type": "evil", "auto_map": "evil.C"}', "model.trust_remote_code=true"
)
model_folder("a kernel of the hub", f'{LLAMA}, "attn_implementation": "evil/kernel"}}', "evil/kernel", "from the hub")
model_folder("a kernel, inside", f'{LLAMA}, "text_config": {{"_attn_implementation": "e/k:f"}}}}', "e/k:f")
model_folder("kernels by their parts", f'{LLAMA}, "attn_implementation": {{"": "sdpa", "x": "e/k"}}}}', "e/k")
model_folder("a billion layers", '{"model_type": "llama", "num_hidden_layers": 1000000000}', "1000000000 layers")
model_folder("fewer layers than none", '{"model_type": "llama", "num_hidden_layers": -1}', "-1 layers")
model_folder("JSON that is deep", DEEP_JSON, "config.json cannot be read")
model_folder("a vocabulary elsewhere", f"{LLAMA}}}", "vocab_file=/etc/passwd",
             files={"tokenizer_config.json": '{"vocab_file": "/etc/passwd"}'})  # fmt: skip
model_folder("weights elsewhere", f"{LLAMA}}}", "../secret.jsonl",
             files={"model.safetensors.index.json": '{"weight_map": {"a": "../secret.jsonl"}}'})  # fmt: skip
model_folder("an index that is none", f"{LLAMA}}}", "weights are missing",
             files={"model.safetensors.index.json": '{"weight_map": [["a"], {}]}'})  # fmt: skip


@case("model: pickled weights", "pickled", "model.allow_pickle=true")
def _(here: Path) -> list[str]:
    put("model/config.json", f"{LLAMA}}}")
    put("model/tokenizer.json", "{}")
    put("model/pytorch_model.bin", f"cos\nsystem\n(S'touch {CANARY}'\ntR.")
    return ["evaluate", "model=hf", "model.path=model"]


@case("model: a config without an end", "no config.json")
def _(here: Path) -> list[str]:
    Path("model").mkdir()
    Path("model/config.json").symlink_to("/dev/zero")
    return ["evaluate", "model=hf", "model.path=model"]


@case("model: a record that is a pipe", "no config.json")
def _(here: Path) -> list[str]:
    Path("model").mkdir()
    os.mkfifo("model/failed.json")
    os.mkfifo("model/trained_on.json")
    return ["evaluate", "model=hf", "model.path=model"]


@case("model: a kernel by its name", "model.attn_implementation=evil/kernel", "sdpa")
def _(here: Path) -> list[str]:
    return ["evaluate", "model.attn_implementation=evil/kernel"]


@case("model: a kernel in place of a package", "flash_attention_3", "not installed")
def _(here: Path) -> list[str]:
    return ["evaluate", "model.attn_implementation=flash_attention_3"]


@case("model: a GGUF file of lists in lists", "limit=0")  # read no further than it makes sense, and no traceback
def _(here: Path) -> list[str]:
    nested = b"".join(struct.pack("<IQ", 9, 1) for _ in range(5000))
    put(
        "evil.gguf",
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + nested,
    )
    return ["evaluate", "model=hf", "model.path=evil.gguf", "limit=0"]


def adapter(name: str, config: str, *parts: str, weights: str = "adapter_model.safetensors") -> None:
    def build(here: Path) -> list[str]:
        put("adapter/adapter_config.json", config)
        put(f"adapter/{weights}", f"cos\nsystem\n(S'touch {CANARY}'\ntR.")
        return ["evaluate", "model.adapter=adapter"]

    case(f"adapter: {name}", "model.adapter=adapter", *parts)(build)


adapter("pickled", '{"peft_type": "LORA"}', "no adapter_model.safetensors", weights="adapter_model.bin")
adapter("others by their names", '{"peft_type": "XLORA", "adapters": {"0": "evil/code"}}', "XLORA")
adapter("JSON that is deep", DEEP_JSON, "no readable adapter_config.json")


# --- Folders of runs -------------------------------------------------------------------------------------------------


def a_run(place: str = "outputs/evaluate/mine-0123456789ab", **facts: Any) -> Path:
    """A finished run, as far as readers look before they calculate."""
    folder = Path(place)
    record.open_run(folder, "limit: 1\n")
    record.write(folder / record.RESULTS, record.as_json({"results": {"mine": {"acc,none": 0.25}}}))
    known = {"job": "evaluate", "config_hash": "0123456789ab", "model": {}, "environment": {}, "tasks": {}}
    record.close_run(folder, {**known, **facts})
    return folder


def damaged(name: str, *parts: str, **changes: Any) -> None:
    """A run whose manifest somebody wrote, its own hash too."""

    def build(here: Path) -> list[str]:
        folder = a_run()
        manifest = disk.unsealed(disk.json_of(folder / record.MANIFEST))
        for key, value in changes.items():
            if value is None:
                del manifest[key]
            else:
                manifest[key] = manifest[key] | value if isinstance(value, dict) and value else value
        record.write(folder / record.MANIFEST, record.as_json(disk.sealed(manifest)))
        return ["compare", "runs=outputs"]

    case(f"run: {name}", "outputs/evaluate/mine", *parts)(build)


SECRET_SHA = hashlib.sha256(f'{{"id": "{SECRET}"}}\n'.encode()).hexdigest()
damaged("a file outside", "../../../secret.jsonl", files={"../../../secret.jsonl": SECRET_SHA})
damaged("a file of the system", "/etc/passwd", files={"/etc/passwd": "0"})
damaged("a file without an end", "/dev/zero", files={"/dev/zero": "0"})
damaged("a name that a terminal obeys", "names", files={"\x1b[2J": "0"})
damaged("a task that is a path", "../../x", tasks={"../../x": {}})
damaged("no job", "damaged", job=None)
damaged("a job that is no name", "damaged", job=["evaluate"])
damaged("files that are none", "damaged", files=[1])
damaged("results that nobody vouches for", "vouch", files={})


def raw_run(name: str, file: str, content: str | bytes | None, *parts: str, line: str = "compare runs=outputs") -> None:
    def build(here: Path) -> list[str]:
        folder = a_run()
        (folder / file).unlink(missing_ok=True)
        if content is None:
            os.mkfifo(folder / file)
        else:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
        return line.split()

    case(f"run: {name}", *parts)(build)


raw_run("a manifest that is deep", "manifest.json", DEEP_JSON, "mine-0123456789ab", "nested too deep")
raw_run("a manifest that is a list", "manifest.json", "[]", "not a record")
raw_run("a manifest without its hash", "manifest.json", '{"format": 2, "job": "evaluate", "files": {}}', "hash")
raw_run("a manifest of a number too long", "manifest.json", f'{{"format": {"9" * 10_000}}}', "mine-0123456789ab")
raw_run("results that are a pipe", "results.json", None, "not a file")
raw_run("a sweep that is no JSON", "../../sweeps/s/sweep.json", "{", "sweep.json")
raw_run("a sweep that is deep", "../../sweeps/s/sweep.json", DEEP_JSON, "sweep.json", "deep")
raw_run(
    "a sweep of other folders",
    "../../sweeps/s/sweep.json",
    '{"job": "../..", "runs": [{"folder": "x"}]}',
    "other folders",
)
raw_run(
    "a sweep that leads up",
    "../../sweeps/s/sweep.json",
    '{"job": "evaluate", "runs": [{"folder": ".."}]}',
    "other folders",
)
raw_run(
    "strategies that are deep",
    "../../strategies.json",
    DEEP_JSON,
    "strategies.json",
    "deep",
    line="report runs=outputs",
)
raw_run(
    "a selection that is deep", "../../selection.json", DEEP_JSON, "selection.json", "deep", line="report runs=outputs"
)


@case("run: a link out of its folder", "leads out of the folder")
def _(here: Path) -> list[str]:
    folder = a_run()
    shutil.move(folder / record.RESULTS, "moved.json")
    (folder / record.RESULTS).symlink_to(here / "moved.json")
    return ["compare", "runs=outputs"]


def chosen(**changes: Any) -> dict[str, Any]:
    grid = {
        "model_name": "gemma3_270m", "task_name": "cldr", "language_pair": ["en", "de"], "weights": None,
        "folder": None, "intervention": {"site": "module"}, "control": None,
    }  # fmt: skip
    known = {
        "format": 1, "strategy": "overall", "cells": [["ffn", 3, 1]], "rule": None, "pooled": False,
        "candidates": [9, 9], "documents": ["a"], "questions": [], "grids": [grid], "score": 0.5, "vanilla": 0.5,
    }  # fmt: skip
    return known | changes


def select_file(name: str, content: Any, *parts: str) -> None:
    def build(here: Path) -> list[str]:
        put("evil.json", content if isinstance(content, str) else json.dumps(content))
        return ["evaluate", "selection=evil.json"]

    case(f"selection: {name}", "selection=evil.json", *parts)(build)


def _selections(**changes: Any) -> dict[str, Any]:
    return {"format": 1, "selections": [chosen(**changes)]}


select_file("a layer below the first", _selections(cells=[["ffn", -1, 0]]), "layer -1")
select_file("a layer that is half", _selections(cells=[["ffn", 1.5, 0]]), "layer 1.5")
select_file("a layer far above", _selections(cells=[["ffn", 10**6, 0]]), "1000000")
select_file(
    "another way to write", _selections(grids=[chosen()["grids"][0] | {"intervention": {"site": "os"}}]), "Select anew"
)
select_file("grids that say nothing", _selections(grids=[{"intervention": {}}]), "Select anew")
select_file("no grids", _selections(grids=[]), "Select anew")
select_file("changed since", disk.sealed(_selections() | {"format": 2}) | {"selections": []}, "hash")
select_file("published, and no more", {"published": {"tasks": []}}, "cannot be read")
select_file("deep", DEEP_JSON, "nested too deep")


# --- Grids -----------------------------------------------------------------------------------------------------------


def npz(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def header(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


class Runs:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {CANARY}",)


GRIDS: dict[str, Callable[[], bytes]] = {
    "objects": lambda: npz(names=npy(np.array([Runs()], dtype=object), allow_pickle=True)),
    "a terabyte claimed": lambda: npz(names=header("(1000000000000,)")),
    "a size below none": lambda: npz(names=header("(-1,)") + b"x"),
    "a shape too large to count": lambda: npz(names=header(f"({'9' * 30},)")),
    "less than is there": lambda: npz(names=header("(1,)", "|u1") + b"{}"),
    "a header that is code": lambda: npz(
        names=b"\x93NUMPY\x01\x00" + struct.pack("<H", 30) + b"__import__('os').system('true')"
    ),
    "other arrays": lambda: npz(evil=npy(np.ones(2))),
    "no zip": lambda: b"PK\x03\x04" + b"x" * 100,
    "meta data that are deep": lambda: npz(names=npy(np.frombuffer(DEEP_JSON.encode(), np.uint8))),
    "meta data that are a list": lambda: npz(names=npy(np.frombuffer(b"[]", np.uint8))),
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_numbers_or_refused(name: str) -> None:
    put("grid.npz", GRIDS[name]())
    with pytest.raises(XTransplantError, match=r"grid\.npz: not a grid, or damaged .*Compute it anew"):
        Grid.load(Path("grid.npz"))
    assert not Path(CANARY).exists()


def test_a_bomb_of_zeros_is_not_unpacked() -> None:
    bomb = npz(names=npy(np.zeros(10**6, np.uint8)))
    most, disk._ARRAYS_BYTES = disk._ARRAYS_BYTES, 10**5
    try:
        put("grid.npz", bomb)
        with pytest.raises(XTransplantError, match="more than"):
            Grid.load(Path("grid.npz"))
    finally:
        disk._ARRAYS_BYTES = most


# --- Bundles ---------------------------------------------------------------------------------------------------------


def packed(entries: dict[str, bytes], **changes: Any) -> bytes:
    """A bundle of a run as `export` lays it out, with these entries beside or in place of its own."""
    folder = a_run("made/evaluate/mine-0123456789ab")
    files = {f"run/{path.name}": path.read_bytes() for path in folder.iterdir()}
    files |= {"README.txt": b"x", "lock.txt": b""} | entries
    files = {name: content for name, content in files.items() if content is not None}
    content = {
        "format": 1, "xtransplant": "0", "job": "evaluate", "name": folder.name, "short": "0123456789ab",
        "files": {name: hashlib.sha256(each).hexdigest() for name, each in files.items()}, "withheld": {},
        "selection": None, "adapter": None, "tasks": [], "documents": {"licence": None, "redistribute": True},
    }  # fmt: skip
    return zipped({"bundle.json": json.dumps(content | changes).encode(), **files})


def zipped(entries: dict[str, bytes], edit: Callable[[zipfile.ZipInfo], None] = lambda _: None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            edit(info)
            archive.writestr(info, content)
    return buffer.getvalue()


def link(info: zipfile.ZipInfo) -> None:
    if info.filename == "lock.txt":
        info.external_attr = (stat.S_IFLNK | 0o777) << 16


def sent(name: str, content: Callable[[], bytes], *parts: str) -> None:
    def build(here: Path) -> list[str]:
        put("evil.zip", content())
        return ["diff", "evil.zip", "evil.zip"]

    case(f"bundle: {name}", "evil.zip", *parts)(build)


def opened_and_zipped(edit: Callable[[zipfile.ZipInfo], None]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(packed({}))) as archive:
        return zipped({each: archive.read(each) for each in archive.namelist()}, edit)


def twice() -> bytes:
    buffer = io.BytesIO(packed({}))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("lock.txt", "x")
    return buffer.getvalue()


sent("no zip", lambda: b"#!/bin/sh\ntouch canary\n")
sent("nothing", lambda: b"")
sent("a path that leads out", lambda: packed({"../evil": b"x"}), "../evil")
sent("a path that leads out later", lambda: packed({"run/../../evil": b"x"}), "run/../../evil")
sent("an absolute path", lambda: packed({"/tmp/evil": b"x"}), "/tmp/evil")
sent("a path of Windows", lambda: packed({"run\\..\\evil": b"x"}), "evil")
sent("a drive", lambda: packed({"C:evil": b"x"}), "C:evil")
sent("a name that a terminal obeys", lambda: packed({"run/\x1b[2J": b"x"}), r"\x1b")
sent("a name of another case", lambda: packed({"LOCK.txt": b"x"}), "twice")
sent("a file that is a folder too", lambda: packed({"lock.txt/x": b"x"}), "lock.txt/x")
sent("a link", lambda: opened_and_zipped(link), "lock.txt", "link")
sent("a file twice", twice, "lock.txt")
sent("a bomb", lambda: packed({"run/evil.bin": b"\0" * 30_000_000}), "run/evil.bin")
sent("a file that is not named", lambda: zipped({"bundle.json": b"{}", "evil": b"x"}), "bundle.json")
sent("another hash", lambda: packed({}, files={"lock.txt": "0" * 64}))
sent("a run of another name", lambda: packed({}, name="../../mine"), "mine")
sent("a job that is none", lambda: packed({}, job="rm -rf"), "rm -rf")
sent("a format to come", lambda: packed({}, format=99), "99")
sent("JSON that is deep", lambda: packed({"run/results.json": DEEP_JSON.encode()}), "results.json")
sent("a manifest of its own", lambda: packed({"run/manifest.json": b'{"format": 2, "files": {}}'}), "manifest.json")
sent("a config that is a bomb", lambda: with_config(BOMB), "config.yaml")
sent("a config that is deep", lambda: with_config("limit: " + "[" * 50_000), "config.yaml")
sent(
    "a config that is an object",
    lambda: with_config("limit: !!python/object/apply:os.system [touch canary]"),
    "config.yaml",
)


def with_config(text: str) -> bytes:
    folder = a_run("made/evaluate/mine-0123456789ab")
    record.write(folder / record.CONFIG, text)
    manifest = disk.unsealed(disk.json_of(folder / record.MANIFEST))
    (folder / record.MANIFEST).unlink()
    record.close_run(folder, manifest)
    kept = {f"run/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return packed(kept)


# --- All of them -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some data, a file outside of it, a secret of the environment, and no way to a model."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)
    monkeypatch.setenv("MY_TOKEN", SECRET)
    put("secret.jsonl", f'{{"id": "{SECRET}"}}\n')
    for language in ("en", "de"):
        rows = [{"id": each, "question": f"{each} {language}?", "choices": ["x", "y"], "label": 1} for each in "ab"]
        put(f"data/{language}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(families, "find_tasks", _found)
    for name in ("evaluate", "grid", "sft", "doctor"):
        monkeypatch.setattr(jobs if hasattr(jobs, name) else grid_jobs, name, lambda *_: pytest.fail("not refused"))
    return here


_find_tasks = families.find_tasks.__wrapped__
_known = functools.cache(lambda: _find_tasks())


def _found(include_path: tuple[str, ...] = ()) -> dict[str, Path]:
    """To read the names of 13,000 tasks anew for each takes long; the user's are read anew."""
    if not include_path:
        return _known()
    own = {}
    with pytest.MonkeyPatch.context() as patch:
        nothing = Path("nowhere-at-all")
        patch.setattr(families, "files", lambda _: nothing)
        patch.setattr(families, "_harness_tasks", lambda: nothing)
        own = _find_tasks(include_path)
    return _known() | own


def test_there_are_many() -> None:
    assert len(CASES) + len(GRIDS) + len(TEMPLATES) >= 60
    assert len(CASES) >= 100


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, somewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build, parts = CASES[name]
    arguments = build(somewhere)
    outside = {*tmp_path.iterdir(), *Path("/tmp").glob("elsewhere")}
    code = cli.main(arguments)
    out, said = capsys.readouterr()
    assert (code, out) == (2, ""), said
    assert said.startswith("error: ") and "Traceback" not in said
    assert all(part in said for part in parts), said
    assert SECRET not in said and "\x1b" not in said
    assert not Path(CANARY).exists()
    assert {*tmp_path.iterdir(), *Path("/tmp").glob("elsewhere")} == outside


# --- What is asked for by name, and what is harmless -----------------------------------------------------------------


def test_code_that_is_allowed_runs() -> None:
    kept = TASK.replace('doc_to_text: "{{question}}"', "doc_to_text: !function own.prompt")
    put("tasks/mine.yaml", kept)
    put("tasks/own.py", "def prompt(doc):\n    return doc['question'].upper()\n")
    task = TaskConfig("mine", ["mine"], None, ["tasks"], key="id", data_dir="data", data_files={"test": "{lang}.jsonl"})
    pair = LanguagePairConfig("en", "de")
    (fault,) = families.check(task, pair)
    assert "own.prompt" in fault
    with pytest.raises(XTransplantError, match=r"own\.prompt.*task\.allow_code=true"):
        pairing.load(task, pair, Split.all, None)
    task.allow_code = True
    assert families.check(task, pair) == []
    (found,) = pairing.load(task, pair, Split.all, None)
    assert found.target.doc_to_text(found.docs[0]) == "A DE?"


def test_what_is_ours_and_the_harnesss_needs_no_leave() -> None:
    for name in ("cldr_language_sw", "paper_xnli_tr", "belebele_swh_Latn"):
        path = _known()[name]
        assert families._is_trusted(path)
    task = TaskConfig("cldr", ["cldr_language_{lang}"], include_path=[str(files("xtransplant.tasks"))], key="id")
    assert families.check(task, LanguagePairConfig("en", "sw")) == []


def test_leave_that_is_given_by_name_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    put("mine/model/own.yaml", "name: own\npath: a/b\ntrust_remote_code: true\n")
    put(
        "mine/hydra/launcher/ours.yaml",
        "_target_: hydra_plugins.xtransplant_launchers.SubmititLocal\nworkers: 3\ngpus: 0\n",
    )
    Path("mine/.#own.yaml").symlink_to("me@here.1234")  # Emacs's, of a file that is open
    # A launcher that a file chooses comes with its own settings, which nobody has to say again.
    launchers = ("ray", "ray_cluster", "submitit_slurm")
    for each in launchers:
        chosen = (
            f"# @package _global_\ndefaults: [override /hydra/launcher: {each}]\nhydra: {{launcher: {{threads: 2}}}}\n"
        )
        put(f"mine/experiment/{each}.yaml", chosen)
    given = ["evaluate", "-cd", "mine", "limit=0"]
    for line in (
        *(f"-m experiment={each} seed=1,2" for each in launchers),
        "model=own model.trust_remote_code=true",
        "-m model=own model.trust_remote_code=true limit=0,-1",
        "-m hydra/launcher=ours hydra.launcher.workers=2 seed=1,2",
    ):
        assert cli.main([*given, *line.split()]) == 2
        said = capsys.readouterr().err
        assert "a file says so" not in said and "cannot be read" not in said, line


def test_text_of_others_does_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    put("mine/model/evil.yaml", r'{name: x, path: a/b, licence: "Mine\e]0;owned\a of \x9b2J."}')
    assert cli.main(["list", "models", "evil", "--config-dir", "mine"]) == 0
    out = capsys.readouterr().out
    assert r"Mine\x1b]0;owned\x07 of \x9b2J." in out and "\x1b" not in out and "\x9b" not in out


def test_a_recorded_config_is_text_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that did not finish: what looks as if it were to be filled in is not, and a bomb is not unpacked."""
    from xtransplant.config import DoctorConfig

    put("x/config.yaml", "source_prompt: 'a ${oc.env:HOME} ${model.name}'\nmodel: {name: m, path: p}\n")
    assert record.config_of(Path("x"), DoctorConfig).source_prompt == "a ${oc.env:HOME} ${model.name}"
    put("outputs/evaluate/a-0123456789ab/config.yaml", BOMB)
    put("outputs/evaluate/b-0123456789ab/config.yaml", "[" * 50_000)
    assert [each.facts for each in jobs.unfinished(["outputs"])] == [None, None]


def test_commands_that_are_shown_are_quoted() -> None:
    from xtransplant.command import command

    assert command("x; touch canary", {}) == "xtransplant 'x; touch canary'"
    shown = command("evaluate", {"language_pair": {"source": "a;b", "target": "$(c)"}})
    assert shown == "xtransplant evaluate 'language_pair=a;b-$(c)'"


def test_short_of_memory_nothing_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    put("large.json", "[" + "1," * 1000 + "1]")
    monkeypatch.setattr(disk, "_JSON_BYTES", 100)
    with pytest.raises(ValueError, match="at most"):
        disk.bytes_of(Path("large.json"), disk._JSON_BYTES)


def test_what_would_read_the_environment_in_a_bundle_is_text() -> None:
    put("evil.zip", with_config("model: {name: '${oc.env:MY_TOKEN}'}\n"))
    with bundle.opened("evil.zip") as found:
        assert found.config == {"model": {"name": "${oc.env:MY_TOKEN}"}}
    assert OmegaConf.create(record.literal(found.config)).model.name == "${oc.env:MY_TOKEN}"


def test_a_bundle_of_a_run_is_opened() -> None:
    put("good.zip", packed({}))
    with bundle.opened("good.zip") as found:
        assert found.results["results"] == {"mine": {"acc,none": 0.25}}
        run = record.load_run(found.folder)
        assert run is not None and run.manifest == found.manifest
    assert selection.Selection.from_dict(chosen()).cells[0].source == 3
