"""What may be asked for: one dataclass per job; the name and hash of a run. What is wrong with a value: `checks.py`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self

from omegaconf import MISSING

from xtransplant.types import STRATEGIES, Component, Control, Intervention, LayerPair, Mode, Scope, Site


class Dtype(Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Split(Enum):
    all = "all"
    sample = "sample"
    unseen = "unseen"


class Unmatched(Enum):
    error = "error"
    drop = "drop"


class EmptyPrompt(Enum):
    error = "error"
    vanilla = "vanilla"


class Translated(Enum):
    original = "original"  # not translated: made in each language
    people = "people"
    both = "both"  # by a machine and by people, or by a machine and then mended
    machine = "machine"


class PromptLanguages(Enum):
    target = "target"
    both = "both"  # the source prompt, an empty line, the target prompt


class Method(Enum):
    lora = "lora"
    full = "full"


class Mixture(Enum):
    proportional = "proportional"  # every example there is
    equal = "equal"  # as many of each language as the smallest has
    weights = "weights"  # in the proportion of data.weights, none more than once


class TooLong(Enum):
    cut = "cut"  # the prompt from its beginning, as the harness does; only then the answer from its end
    drop = "drop"


class Schedule(Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class TrackingBackend(Enum):
    none = "none"
    wandb = "wandb"


class TrackingMode(Enum):
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass
class ModelConfig:
    name: str = field(default=MISSING, metadata={"help": "short name, shown in run folders and tables"})
    path: str = field(default=MISSING, metadata={"help": "embedded:<name>, hub id, folder or GGUF file"})
    licence: str | None = field(default=None, metadata={"help": "shown only"})
    revision: str | None = field(
        default=None, metadata={"help": "hub branch, tag or commit; the resolved commit is recorded"}
    )
    adapter: str | None = field(
        default=None, metadata={"help": "folder or hub id of a PEFT adapter; a pattern that one folder matches"}
    )
    dtype: Dtype = field(default=Dtype.float32, metadata={"help": "of weights and activations"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1, mps"})
    device_map: str | None = field(default=None, metadata={"help": "accelerate's: auto, balanced, sequential"})
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, eager, flash_attention_2"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run Python code that comes with the checkpoint"})
    allow_pickle: bool = field(default=False, metadata={"help": "load weights that are not safetensors"})
    modules: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "module names of an architecture that the engine does not know: layers, attn, ffn, …"},
    )


@dataclass
class TaskConfig:
    name: str = field(default=MISSING, metadata={"help": "short name, shown in run folders and tables"})
    tasks: list[str] = field(
        default=MISSING, metadata={"help": "lm-eval tasks of the target side; {lang} is the language's own code"}
    )
    source_tasks: list[str] | None = field(
        default=None, metadata={"help": "those of the source side, where they are named differently"}
    )
    include_path: list[str] = field(
        default_factory=list, metadata={"help": "folders of your own lm-eval task YAML files"}
    )
    allow_code: bool = field(
        default=False, metadata={"help": "run Python code that comes with the task files of include_path"}
    )
    languages: dict[str, str] = field(
        default_factory=dict, metadata={"help": "language code -> the task's own; empty: any, as given"}
    )
    key: str = field(
        default=MISSING,
        metadata={"help": "document field(s) that align the two sides, joined by commas; row: the row number"},
    )
    unmatched: Unmatched = field(
        default=Unmatched.error, metadata={"help": "documents without a counterpart: refuse, or leave them out"}
    )
    gold: str | None = field(
        default=None,
        metadata={"help": "document field with a label that no language changes; doc_to_target: the task's own answer"},
    )
    min_gold_agreement: float = field(
        default=0.99, metadata={"help": "share of documents whose gold label must agree between the sides"}
    )
    split_field: str | None = field(
        default=None, metadata={"help": "document field that says sample or unseen; null: by a hash of the key"}
    )
    documents: str | None = field(default=None, metadata={"help": "how many in each language; shown only"})
    requests: str | None = field(
        default=None, metadata={"help": "lm-eval's output_type of its tasks; shown by `xtransplant list` only"}
    )
    translated: Translated | None = field(
        default=None, metadata={"help": "who translated the documents; a report says so. null: not known"}
    )
    licence: str | None = field(default=None, metadata={"help": "of the documents; shown only"})
    redistribute: bool | None = field(
        default=None,
        metadata={"help": "may the documents be passed on, in a bundle; if not known (null) or false, hashes are"},
    )
    data_files: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "local data instead of the hub's: split -> JSON-lines file below data_dir"},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "folder of local data; null: the environment variable XTRANSPLANT_DATA"}
    )
    num_fewshot: int | None = field(default=None, metadata={"help": "examples in the prompt; null: the task's own"})
    system_instruction: str | None = field(default=None, metadata={"help": "system message of the chat template"})
    apply_chat_template: bool = field(default=False, metadata={"help": "prompts as turns of a chat"})
    fewshot_as_multiturn: bool = field(default=False, metadata={"help": "each example as turns of its own"})
    empty_prompt: EmptyPrompt = field(
        default=EmptyPrompt.error,
        metadata={"help": "requests without a prompt: refuse, or score without a transplant and count them"},
    )


@dataclass
class LanguagePairConfig:
    source: str = field(default=MISSING, metadata={"help": "language of the prompt that is read"})
    target: str = field(default=MISSING, metadata={"help": "language of the prompt that is answered"})


@dataclass
class InterventionConfig:
    """What is read, and how it is written; the defaults are the paper's."""

    component: Any = field(
        default=Component.ffn.value,
        metadata={"help": "module whose output is transplanted, or several", "type": "ffn, attn or [ffn,attn]"},
    )
    site: Site = field(
        default=Site.module,
        metadata={"help": "the module's own output, or what a norm after it adds to the residual stream"},
    )
    control: Control = field(
        default=Control.none,
        metadata={"help": "instead of the parallel prompt's vector: another document's, noise, …; zero deactivates"},
    )
    mean_over: list[str] = field(
        default_factory=list,
        metadata={
            "help": "further source languages: the vector is the mean over them and the pair's",
            "type": "[de,…]",
        },
    )
    mode: Mode = field(
        default=Mode.replace,
        metadata={"help": "what the vector v makes of the module's output o: v, o + strength v, or between the two"},
    )
    strength: float = field(default=1.0, metadata={"help": "of mode=add and mode=interpolate; 1 is all of v"})
    match_norm: bool = field(default=False, metadata={"help": "scale v to the length of o first"})
    positions: Any = field(
        default=1,
        metadata={
            "help": "last prompt tokens that are read and written; all needs prompts of equal length",
            "type": "a whole number or all",
        },
    )
    scope: Scope = field(
        default=Scope.first_token,
        metadata={"help": "write in the prompt's forward pass only, or at every later token too"},
    )

    @property
    def intervention(self) -> Intervention:
        return Intervention(self.site, self.mode, self.strength, self.match_norm, self.positions, self.scope)

    def recorded(self) -> dict[str, Any]:
        """How vectors are written, as plain values: what a grid and a selection keep of it."""
        values = {name: getattr(self, name) for name in _RECORDED}
        return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}

    def with_recorded(self, values: Mapping[str, Any]) -> Self:
        """This config where `recorded` values take the place of its own."""
        own = {name: getattr(self, name) for name in values}
        given: dict[str, Any] = {
            name: type(old)(values[name]) if isinstance(old, Enum) else values[name] for name, old in own.items()
        }
        return dataclasses.replace(self, **given)


# The component and the control are recorded elsewhere, the latter because it makes another grid of the same kind.
_RECORDED = [each.name for each in dataclasses.fields(InterventionConfig) if each.name not in ("component", "control")]


@dataclass
class TransplantConfig(InterventionConfig):
    component: Component = field(default=Component.ffn, metadata={"help": "module whose output is transplanted"})
    layers: Any = field(
        default=None,
        metadata={
            "help": "layer read and layer written: an index, from the end if negative, first or last; several pairs; "
            "null: vanilla",
            "type": "[source, target], [[source, target], …] or null",
        },
    )


@dataclass
class SweepConfig:
    pairs: Any = field(
        default="all",
        metadata={
            "help": "layer pairs to look at",
            "type": "all, source_last, target_first, diagonal or [[source,target],…]",
        },
    )
    budget: float | None = field(
        default=None,
        metadata={"help": "share of the whole grid to compute, coarse to fine by successive halving; null: all of it"},
    )
    memory: float | None = field(
        default=None,
        metadata={
            "help": "gigabytes that a batch may take beside the model; null: 2, on a GPU a quarter of its memory or "
            "half of what is free, if that is less"
        },
    )


@dataclass
class TrackingConfig:
    """Where runs are logged beside their folders; see `tracking.py`."""

    backend: TrackingBackend = field(
        default=TrackingBackend.none, metadata={"help": "where runs are logged beside their folders"}
    )
    mode: TrackingMode = field(
        default=TrackingMode.online,
        metadata={"help": "offline: only files below output_dir/wandb, for `wandb sync`; online: uploaded too"},
    )
    project: str = field(default="xtransplant", metadata={"help": "W&B project; a W&B sweep has its own"})
    entity: str | None = field(default=None, metadata={"help": "W&B user or team; null: the account's default"})
    group: str | None = field(default=None, metadata={"help": "W&B group; null: the sweep's name"})
    tags: list[str] = field(
        default_factory=list, metadata={"help": "W&B tags beside model, task, language pair and condition"}
    )


@dataclass
class DataConfig:
    """What a model is trained on; see `training_data.py`."""

    name: str = field(default=MISSING, metadata={"help": "short name, shown in run folders and tables"})
    path: str = field(
        default=MISSING,
        metadata={"help": "hub id, folder or file (JSON lines, Parquet, CSV); task: the documents of the task"},
    )
    licence: str | None = field(default=None, metadata={"help": "shown only"})
    revision: str | None = field(default=None, metadata={"help": "hub branch, tag or commit"})
    config: str | None = field(
        default=None, metadata={"help": "configuration of a hub data set; {lang} is the language's own code"}
    )
    files: str | None = field(
        default=None,
        metadata={"help": "the file of a language below path, e.g. {lang}.jsonl; null: found by the language's code"},
    )
    split: str = field(
        default="train", metadata={"help": "of a hub data set; of the task's documents only sample is trained on"}
    )
    languages: list[str] = field(default_factory=lambda: ["en"], metadata={"help": "languages to train on"})
    codes: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "language code -> the data's own, several joined by |; empty: any, as given"},
    )
    language_field: str | None = field(default=None, metadata={"help": "field that holds a row's language"})
    key: str | None = field(
        default=None,
        metadata={"help": "field(s) that name a document in all its languages, joined by commas; null: each row alone"},
    )
    prompt: str = field(default="{{prompt}}", metadata={"help": "Jinja template of a row's prompt"})
    answer: str = field(
        default="{{answer}}", metadata={"help": "of its answer, which follows after an empty line if not as a chat"}
    )
    apply_chat_template: bool = field(
        default=False, metadata={"help": "prompt and answer as turns of a chat; of a task: task.apply_chat_template"}
    )
    mixture: Mixture = field(
        default=Mixture.proportional,
        metadata={"help": "of the languages: all there is, as many of each as the smallest has, or data.weights"},
    )
    weights: dict[str, float] = field(
        default_factory=dict, metadata={"help": "language -> its share, with mixture=weights", "type": "{en: 1, …}"}
    )
    limit: int | None = field(
        default=None, metadata={"help": "documents of each language, the same where they are parallel; null: all"}
    )
    held_out: float = field(
        default=0.1, metadata={"help": "share of the documents that is not trained on, but evaluated meanwhile"}
    )


@dataclass
class LoraConfig:
    rank: int = field(default=8, metadata={"help": "of the update of a weight matrix"})
    alpha: float = field(default=16.0, metadata={"help": "the update is scaled by alpha / rank"})
    dropout: float = field(default=0.0, metadata={"help": "share of the inputs to the update that is left out"})
    targets: Any = field(
        default="all-linear",
        metadata={
            "help": "modules that are adapted",
            "type": "all-linear (all but the head), or names as [q_proj,v_proj]",
        },
    )


_SPLIT = {"help": "half of the documents: sample to choose layers on, unseen to test the choice"}
_LIMIT = {"help": "documents per task; null: all"}
_OUTPUT_DIR = {"help": "folder for what the job makes, below its own name"}
_RESUME = {"help": "go on with what is there: finished runs, parts of a grid; false refuses to"}
_OVERWRITE = {"help": "compute a finished run anew"}
_GRIDS = {"help": "folders of grid runs; patterns with * are expanded", "type": "folder or [folder, …]"}
_CONTROLS = {"help": "grid runs with transplant.control", "type": "folder or [folder, …]"}


@dataclass
class EvaluateConfig:
    """evaluate a model on parallel tasks of a language pair, with a transplant or without (vanilla)"""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    language_pair: LanguagePairConfig = field(default_factory=LanguagePairConfig)
    transplant: TransplantConfig = field(default_factory=TransplantConfig)
    selection: str | None = field(
        default=None,
        metadata={"help": "selection.json of `xtransplant select`, or a pattern for it: in place of transplant"},
    )
    selection_of_base: bool = field(
        default=False,
        metadata={"help": "for a fine-tuned model: take the selection of the model that it was fine-tuned from"},
    )
    split: Split = field(default=Split.all, metadata=_SPLIT)
    limit: int | None = field(default=None, metadata=_LIMIT)
    seed: int = field(default=1234, metadata={"help": "of the few-shot draw, sampling and bootstrap"})
    prompt: PromptLanguages = field(
        default=PromptLanguages.target,
        metadata={"help": "what is asked: the target prompt, or the prompt in both languages, one after the other"},
    )
    batch_size: int = field(default=8, metadata={"help": "prompts per forward pass; results do not depend on it"})
    output_dir: str = field(default="outputs", metadata=_OUTPUT_DIR)
    resume: bool = field(default=True, metadata=_RESUME)
    overwrite: bool = field(default=False, metadata=_OVERWRITE)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def is_vanilla(self) -> bool:
        return self.transplant.layers is None and self.selection is None


@dataclass
class GridConfig:
    """score every layer pair on the documents of a language pair, in one sweep a document"""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    language_pair: LanguagePairConfig = field(default_factory=LanguagePairConfig)
    transplant: InterventionConfig = field(default_factory=InterventionConfig)
    grid: SweepConfig = field(default_factory=SweepConfig)
    split: Split = field(default=Split.sample, metadata=_SPLIT)
    limit: int | None = field(default=None, metadata=_LIMIT)
    seed: int = field(default=1234, metadata={"help": "of the few-shot draw, controls and sampling"})
    output_dir: str = field(default="outputs", metadata=_OUTPUT_DIR)
    resume: bool = field(default=True, metadata=_RESUME)
    overwrite: bool = field(default=False, metadata=_OVERWRITE)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class SftConfig:
    """train a model on a task's sample half or on instructions, in several languages; the result is a model"""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: Method = field(default=Method.lora, metadata={"help": "an adapter, or all weights"})
    lora: LoraConfig = field(default_factory=LoraConfig)
    steps: int | None = field(default=100, metadata={"help": "updates of the weights; null: by epochs"})
    epochs: float | None = field(default=None, metadata={"help": "how often each example is seen, with steps=null"})
    batch_size: int = field(default=8, metadata={"help": "examples in one forward pass"})
    accumulation: int = field(default=1, metadata={"help": "forward passes in one update"})
    max_length: int = field(default=512, metadata={"help": "tokens of prompt and answer together"})
    too_long: TooLong = field(
        default=TooLong.cut, metadata={"help": "what becomes of longer examples; they are counted"}
    )
    learning_rate: float = field(default=2e-4, metadata={"help": "its highest; for method=full 2e-5 is usual"})
    schedule: Schedule = field(default=Schedule.linear, metadata={"help": "of the learning rate after the warmup"})
    warmup: float = field(default=0.05, metadata={"help": "share of the steps in which the learning rate rises"})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's"})
    eval_steps: int = field(default=20, metadata={"help": "steps between evaluations on the documents held out"})
    patience: int | None = field(
        default=None,
        metadata={"help": "evaluations without a better loss that end the training; the best weights are kept"},
    )
    checkpoint_steps: int = field(default=100, metadata={"help": "steps between checkpoints, to go on after a kill"})
    seed: int = field(default=1234, metadata={"help": "of first weights, order, dropout, what is drawn"})
    output_dir: str = field(default="outputs", metadata=_OUTPUT_DIR)
    resume: bool = field(default=True, metadata=_RESUME)
    overwrite: bool = field(default=False, metadata=_OVERWRITE)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def trains_on_task(self) -> bool:
        """On documents of the task's sample half, not on instructions."""
        return self.data.path == "task"


@dataclass
class SelectConfig:
    """choose a layer pair, or a rule that chooses one for each document, on grids; no model is loaded"""

    grid: Any = field(default=MISSING, metadata=_GRIDS)
    strategy: str = field(default="overall", metadata={"help": f"how to choose: {', '.join(STRATEGIES)}"})
    pooled: bool = field(default=False, metadata={"help": "one choice for all grids together, not one for each"})
    component: str | None = field(default=None, metadata={"help": "ffn or attn: choose among its cells only"})
    fixed: Any = field(
        default=None,
        metadata={
            "help": "for strategy=fixed: the paper's setting for a kind of task, or a cell of your own",
            "type": "understanding, generation, culture or [component, source, target]",
        },
    )
    candidates: Any = field(
        default=16,
        metadata={"help": "best cells on the sample that per-document rules look at", "type": "a whole number or all"},
    )
    alpha: float = field(default=0.05, metadata={"help": "level of strategy=cross_validated"})
    seed: int = field(default=1234, metadata={"help": "of the folds"})
    output_dir: str = field(default="outputs", metadata=_OUTPUT_DIR)


@dataclass
class StrategiesConfig:
    """every strategy, chosen on sample grids and scored on unseen ones; no model is loaded"""

    grid: Any = field(default=MISSING, metadata=_GRIDS)
    unseen: Any = field(default=MISSING, metadata=_GRIDS)
    controls: Any = field(default_factory=list, metadata=_CONTROLS)
    seed: int = field(default=1234, metadata={"help": "of folds and bootstrap"})
    output_dir: str = field(default="outputs", metadata=_OUTPUT_DIR)


@dataclass
class AnalyzeConfig:
    """the map over layer pairs: tests over all cells, upper bounds, heatmaps and curves"""

    grid: Any = field(default=MISSING, metadata=_GRIDS)
    controls: Any = field(default_factory=list, metadata=_CONTROLS)
    seed: int = field(default=1234, metadata={"help": "of permutations and splits"})
    output_dir: str = field(default="outputs", metadata=_OUTPUT_DIR)


@dataclass
class DoctorConfig:
    """check a model: its modules, its transplants, and what is read and written for a pair of prompts"""

    model: ModelConfig = field(default_factory=ModelConfig)
    transplant: TransplantConfig = field(default_factory=TransplantConfig)
    source_prompt: str = field(default="The capital of France is the city of", metadata={"help": "prompt that is read"})
    target_prompt: str = field(
        default="Die Hauptstadt von Frankreich ist die Stadt", metadata={"help": "prompt that is answered"}
    )


class Form(Enum):
    text = "text"
    csv = "csv"
    markdown = "markdown"
    latex = "latex"


@dataclass
class SummarizeConfig:
    """finished runs beside each other: conditions against vanilla, averages, who got worse"""

    runs: Any = field(
        default_factory=lambda: ["outputs/evaluate/*"],
        metadata={"help": "folders of runs; patterns with * are expanded", "type": "folder or [folder, …]"},
    )
    format: Form = field(default=Form.text, metadata={"help": "csv has a line per cell, with all digits"})
    output: str | None = field(default=None, metadata={"help": "file to write to; null: standard output"})
    overwrite: bool = field(default=False, metadata={"help": "replace the output file if there is one"})


@dataclass
class CompareConfig:
    """conditions against vanilla: intervals, tests, effect sizes, what could be chance, and what each costs"""

    runs: Any = field(
        default_factory=lambda: ["outputs/evaluate"],
        metadata={
            "help": "folders of runs of evaluate, grid and sft, or of a sweep; patterns with * are expanded",
            "type": "folder or [folder, …]",
        },
    )
    against: str | None = field(
        default=None,
        metadata={"help": "another condition that all are compared with too: its name, or a kind as sft or pim"},
    )
    format: Form = field(default=Form.text, metadata={"help": "csv has a line per comparison, with all digits"})
    output: str | None = field(default=None, metadata={"help": "file to write to; null: standard output"})
    overwrite: bool = field(default=False, metadata={"help": "replace the output file if there is one"})


@dataclass
class ReportConfig:
    """one HTML file of finished runs, to be looked at in any browser, offline"""

    runs: Any = field(
        default_factory=lambda: ["outputs"],
        metadata={
            "help": "folders with runs of evaluate, grid, sft, select and strategies; patterns with * are expanded",
            "type": "folder or [folder, …]",
        },
    )
    output: str | None = field(
        default=None,
        metadata={"help": "file to write to; null: report.html in output_dir, replaced if there is one"},
    )
    title: str | None = field(default=None, metadata={"help": "heading of the page; null: the models and tasks"})
    seed: int = field(default=1234, metadata={"help": "of permutations and bootstrap"})
    output_dir: str = field(default="outputs", metadata=_OUTPUT_DIR)
    overwrite: bool = field(default=False, metadata={"help": "replace the output file if there is one"})


_OUTPUT_DIR_OF_RUNS = {"help": "folder below which short names are looked for"}
_PLACE = "folder, bundle or short name"


@dataclass
class ExportConfig:
    """one file with all that a run was, for others: to read without this program, and to compute it again"""

    run: str = field(
        default=MISSING, metadata={"help": "run of evaluate, grid or sft; or a bundle, to be sent on", "type": _PLACE}
    )
    to: str | None = field(
        default=None,
        metadata={
            "help": "file to write, a folder for it, hf://datasets/<owner>/<repository>/<path>.zip or "
            "wandb://<entity>/<project>/<name>; null: bundles/<run's name>.zip in output_dir"
        },
    )
    samples: bool | None = field(
        default=None,
        metadata={"help": "pass on the documents' texts, or their hashes; null: as task.redistribute says"},
    )
    largest: float = field(
        default=64.0, metadata={"help": "megabytes of a file of weights that is passed on; of a larger one its hash is"}
    )
    output_dir: str = field(
        default="outputs", metadata={"help": "folder below which short names are looked for, and bundles written"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the file if there is another one"})


@dataclass
class DiffConfig:
    """what differs between two runs, from config to responses; exit code 0 if nothing does, 1 if anything"""

    a: str = field(default=MISSING, metadata={"help": "one run", "type": _PLACE})
    b: str = field(default=MISSING, metadata={"help": "the other", "type": _PLACE})
    tolerance: float = field(
        default=0.0, metadata={"help": "log-probabilities that differ by no more than this, in nats, are the same"}
    )
    output_dir: str = field(default="outputs", metadata=_OUTPUT_DIR_OF_RUNS)


@dataclass
class ReproduceConfig:
    """compute a run again, and say on which level it differs first from what was recorded, and by how much"""

    run: str = field(default=MISSING, metadata={"help": "run of evaluate or grid", "type": _PLACE})
    set: list[str] = field(
        default_factory=list,
        metadata={
            "help": "keys of the run's config that are others here: model.path, task.data_dir, model.device, …",
            "type": "[key=value, …]",
        },
    )
    cells: int | None = field(
        default=None, metadata={"help": "of a grid: compute so many of its cells, drawn by seed; null: all"}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "of evaluate: prompts per forward pass; null: as the run had it"}
    )
    tolerance: float = field(
        default=1e-4, metadata={"help": "largest difference of a log-probability, or of a score, that counts as none"}
    )
    check_only: bool = field(
        default=False, metadata={"help": "compare environment, model, data and prompts; compute nothing"}
    )
    seed: int = field(default=1234, metadata={"help": "of the cells that are drawn"})
    output_dir: str = field(
        default="outputs", metadata={"help": "folder for what the job makes; short names are looked for there"}
    )
    overwrite: bool = field(default=False, metadata={"help": "compute anew what was computed again before"})


TaskJob = EvaluateConfig | GridConfig
# Those whose result is a folder of its own, found again by a hash.
RunJob = EvaluateConfig | GridConfig | SftConfig
ModelJob = EvaluateConfig | GridConfig | SftConfig | DoctorConfig
GridReader = SelectConfig | StrategiesConfig | AnalyzeConfig
RunReader = SummarizeConfig | CompareConfig | ReportConfig
ShareJob = ExportConfig | ReproduceConfig | DiffConfig
JobConfig = ModelJob | GridReader | RunReader | ShareJob
JOBS: dict[str, type[JobConfig]] = {
    "evaluate": EvaluateConfig,
    "grid": GridConfig,
    "sft": SftConfig,
    "select": SelectConfig,
    "strategies": StrategiesConfig,
    "analyze": AnalyzeConfig,
    "summarize": SummarizeConfig,
    "compare": CompareConfig,
    "report": ReportConfig,
    "doctor": DoctorConfig,
    "export": ExportConfig,
    "reproduce": ReproduceConfig,
    "diff": DiffConfig,
}


# --- Identity of a run -----------------------------------------------------------------------------------------------

# Where and how a run is done, or that it may be, not what it computes.
_NOT_IN_HASH = (
    *("output_dir", "resume", "overwrite", "tracking", "batch_size", "grid.memory", "selection", "selection_of_base"),
    *("task.data_dir", "task.allow_code", "task.documents", "task.requests", "task.translated"),
    *("task.licence", "task.redistribute", "model.device", "model.device_map"),
)


def to_dict(config: JobConfig, num_layers: int | None = None) -> dict[str, Any]:
    """Plain values, enums by their value. With the model's number of layers, layers are indices from 0.

    Of a vanilla run's transplant the defaults, and of an adapter where all weights are trained, whatever the sweep says
    of the others: so it can be run again alone.
    """
    if isinstance(config, EvaluateConfig) and config.is_vanilla:
        config = dataclasses.replace(config, transplant=TransplantConfig())
    if isinstance(config, SftConfig) and config.method is Method.full:
        config = dataclasses.replace(config, lora=LoraConfig())
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=lambda value: value.value))
    if num_layers is None:
        return plain
    layers = plain.get("transplant", {}).get("layers")
    if layers is not None:
        several = [[pair.source, pair.target] for pair in LayerPair.parse_several(layers, num_layers)]
        plain["transplant"]["layers"] = several if len(several) > 1 else several[0]
    pairs = plain.get("grid", {}).get("pairs") if isinstance(config, GridConfig) else None
    if isinstance(pairs, list):
        plain["grid"]["pairs"] = [[pair.source, pair.target] for pair in LayerPair.parse_set(pairs, num_layers)]
    return plain


def short_name(model: ModelConfig) -> str:
    """The model's name in tables and run folders: the last part of it, where it is a path."""
    return re.split(r"[/\\]", model.name.rstrip("/\\"))[-1]


def run_name(config: RunJob, num_layers: int | None = None, strategy: str | None = None) -> str:
    """Readable and safe as a folder's name, at most 80 characters; not unique, see `config_hash`.

    Args:
        strategy: of the selection, if there is one.
    """
    if isinstance(config, SftConfig):
        data = config.task.name if config.trains_on_task else config.data.name
        languages = "_".join(config.data.languages)
        return _safe([short_name(config.model)[:24], data[:28], config.method.value, languages])
    pair, transplant = config.language_pair, config.transplant
    parts = [short_name(config.model)[:24], config.task.name[:28], pair.source[:8], pair.target[:8]]
    parts += ["adapter"] if config.model.adapter is not None else []
    if isinstance(config, GridConfig):
        parts += ["_".join(listed(config.transplant.component)), config.split.value]
        if isinstance(config.grid.pairs, str) and config.grid.pairs != "all":
            parts.append(config.grid.pairs)
    elif strategy is not None:
        parts.append(strategy)
    elif config.transplant.layers is None:
        parts.append("vanilla")
    else:
        layers = to_dict(config, num_layers)["transplant"]["layers"]
        pairs = layers if isinstance(layers[0], list) else [layers]
        several = "_".join("_".join(map(str, pair)) for pair in pairs)
        parts += [config.transplant.component.value, *(map(str, layers) if len(pairs) == 1 else [several])]
    if parts[-1] != "vanilla":
        parts += departures(transplant)
    if isinstance(config, EvaluateConfig) and config.prompt is PromptLanguages.both:
        parts.append("both")
    return _safe(parts)


def _safe(parts: Iterable[str]) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part) for part in parts)[:80]


def departures(transplant: InterventionConfig) -> list[str]:
    """How a transplant departs from the paper's, a word each; for the names of runs and conditions."""
    how = transplant.intervention
    words = [how.site.value] if how.site is not Site.module else []
    if how.mode is not Mode.replace:
        words.append(f"{how.mode.value}{how.strength:g}")
    words += ["norm"] if how.match_norm else []
    words += [f"last{how.positions}" if how.positions != "all" else "all"] if how.positions != 1 else []
    words += [how.scope.value] if how.scope is not Scope.first_token else []
    words += [f"mean_{'_'.join(transplant.mean_over)}"] if transplant.mean_over else []
    return words + ([transplant.control.value] if transplant.control is not Control.none else [])


def identity(
    config: RunJob, num_layers: int | None = None, selection: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What is computed, as plain values: the same for two ways to ask for it, and wherever it runs.

    Args:
        selection: its content, where the config names one.
    """
    plain = to_dict(config, num_layers)
    if isinstance(config, SftConfig):
        return _training_identity(config, plain)
    plain["transplant"]["mean_over"].sort()
    if isinstance(config, GridConfig):
        plain["transplant"]["component"] = sorted(listed(config.transplant.component))
    elif selection is not None:
        # The rest is the selection's.
        plain["transplant"] = {"control": config.transplant.control.value}
    elif config.transplant.layers is None:
        plain["transplant"] = None  # which component is not transplanted does not matter
    _without(plain, _NOT_IN_HASH)
    return plain if selection is None else {**plain, "selection": dict(selection)}


def _training_identity(config: SftConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """Here the batch size counts; what the task is, or how an adapter is made, only where there is one."""
    _without(plain, [name for name in _NOT_IN_HASH if name != "batch_size"])
    _without(plain, ["data.licence", "checkpoint_steps"])
    if not config.trains_on_task:
        del plain["task"]
    if config.method is not Method.lora:
        del plain["lora"]
    return plain


def is_computed(job: str, name: str) -> bool:
    """Whether a key of a job, e.g. task.key, says what is computed; or only where, how, or what is shown.

    Of a selection the file is no part of it, its content is.
    """
    if job == "sft" and name in ("batch_size", "data.licence", "checkpoint_steps"):
        return name == "batch_size"
    return not any(name == each or name.startswith(f"{each}.") for each in _NOT_IN_HASH)


def _without(plain: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        section, _, key = name.rpartition(".")
        (plain.get(section, {}) if section else plain).pop(key, None)


def config_hash(config: RunJob, num_layers: int | None = None, selection: Mapping[str, Any] | None = None) -> str:
    """12 hex digits of `identity`."""
    plain = identity(config, num_layers, selection)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def listed(value: Any) -> list[Any]:
    """What may be given alone or as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]
