"""From overrides and YAML files to the config of a job, with every fault on the way."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import re
import shlex
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import yaml
from hydra import version as hydra_version
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from xtransplant import bundle, catalogue, exchange, families, models, record, selection, training_data
from xtransplant.checks import (
    did_you_mean,
    faults_of,
    idle_settings,
    keys,
    refusal,
    secrets,
    secrets_for_hydra,
    shown,
    template_faults,
    validate,
)
from xtransplant.config import (
    JOBS,
    EvaluateConfig,
    ExportConfig,
    JobConfig,
    ModelJob,
    RunJob,
    SftConfig,
    ShareJob,
    TaskJob,
)
from xtransplant.types import Control, Mode, XTransplantError

_LAUNCHER = "hydra/launcher"
# Said after the choices when one is unknown.
_OTHER_CHOICES = {
    "model": "With path and licence: xtransplant list models. Any other model: model=hf model.path=<hub id, folder or "
    "GGUF file>.",
    "task": "What each is: xtransplant list tasks. Any other parallel tasks: a YAML file task/<name>.yaml in a folder "
    "given as --config-dir.",
    "language_pair": "Any two language codes of two or three letters: language_pair=<source>-<target>, e.g. en-sw "
    "or en-zh-Hant; or language_pair.source=<code> language_pair.target=<code>. Codes: xtransplant list languages.",
    "data": "What each is: xtransplant list data. Any other: data=local data.path=<folder or file>, or a YAML file "
    "data/<name>.yaml in a folder given as --config-dir.",
    "experiment": "What each is: xtransplant list experiments.",
    _LAUNCHER: "What each is for: docs/launchers.md.",
}

_LIKE_A_NUMBER = re.compile(r"\d[\d_]*(e\d+)?")

# A language code with subtags, e.g. sw, zh-Hant, zh_CN. After a hyphen they begin with a capital or a digit, so that
# it is clear where the second language of a pair begins.
_CODE = "[a-z]{2,3}(?:_[A-Za-z0-9]+|-[A-Z0-9][A-Za-z0-9]*)*"
_LANGUAGE_PAIR = re.compile(rf"language_pair/(?P<source>{_CODE})-(?P<target>{_CODE})(?:\.yaml)?")


class LanguagePairs(ConfigSource):
    """Makes the choice language_pair=<source>-<target> exist for any two language codes."""

    @staticmethod
    def scheme() -> str:
        return "language-pairs"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") == "language_pair"

    def is_config(self, config_path: str) -> bool:
        return _LANGUAGE_PAIR.fullmatch(config_path) is not None

    def load_config(self, config_path: str) -> ConfigResult:
        pair = _LANGUAGE_PAIR.fullmatch(config_path)
        if pair is None:
            raise ConfigLoadError(f"{config_path} is no pair of language codes")
        config = OmegaConf.create(pair.groupdict())
        return ConfigResult(self.provider, self.full_path(), config, header={"package": None})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []  # endless


class LanguagePairsPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="xtransplant", path=f"{LanguagePairs.scheme()}://")


def register() -> None:
    """Make the schemas, language pairs and launchers known to Hydra. A second call changes nothing.

    No value is filled in from the environment any more: a config may come from a stranger, and may be sent to one.
    """
    hydra_version.setbase("1.3")
    OmegaConf.register_new_resolver("oc.env", _refuse_environment, replace=True)
    for job, schema in JOBS.items():
        ConfigStore.instance().store(name=f"{job}_schema", node=schema, provider="xtransplant")
    known = Plugins.instance()  # looks for plugins itself, but finds none in an editable install
    from hydra_plugins.xtransplant_launchers import LAUNCHERS

    for plugin in (LanguagePairs, LanguagePairsPath, *LAUNCHERS):
        known.register(plugin)


def _refuse_environment(*name: str, _node_: typing.Any) -> typing.NoReturn:
    raise XTransplantError(
        f"{_node_._get_full_key(None)}: reads the variable {name[0] if name else ''} of the environment, which no "
        "config may: it is kept, and may be sent. Write the value; on the command line the shell fills in $NAME."
    )


def _of_launcher(line: str) -> bool:
    return line.lstrip("+~").startswith((_LAUNCHER, "hydra.launcher"))


@contextmanager
def open_hydra(config_dir: str | None = None) -> Iterator[Hydra]:
    """Hydra on our configuration and, if given, a folder of the user's.

    Raises:
        XTransplantError: the folder does not exist.
    """
    register()
    search_path = create_config_search_path("pkg://xtransplant.conf")
    if config_dir is not None:
        folder = catalogue.config_folder(config_dir)
        search_path.prepend(provider="command-line", path=f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    # Hydra would merge our launchers with those that it and its plugins keep by the same names.
    stored = ConfigStore.instance().repo["hydra"]["launcher"]
    ours = {file.name for file in resources.files("xtransplant.conf").joinpath("hydra", "launcher").iterdir()}
    hidden = {name: stored.pop(name) for name in ours & stored.keys()}
    try:
        yield Hydra.create_main_hydra2("xtransplant", search_path)
    finally:
        stored.update(hidden)
        GlobalHydra.instance().hydra = outer


@dataclass
class Request:
    """What a command line asks for, as far as it can be understood."""

    overrides: list[str] = field(default_factory=list)  # those without a fault, as Hydra wants them
    runs: list[JobConfig] = field(default_factory=list)
    lines: list[list[str]] = field(default_factory=list)  # the overrides of each run
    faults: list[str] = field(default_factory=list)
    common: list[str] = field(default_factory=list)  # those that all runs of a sweep have in common
    axes: dict[str, str] = field(default_factory=dict)  # what an experiment sweeps over beside them, with -m
    unclear: set[str] = field(default_factory=set)  # sections and keys that a fault concerns: not to be judged further

    @property
    def swept(self) -> list[str]:
        """The overrides of a sweep. The axes are expanded here: Hydra would sweep twice over what both name."""
        axes = [f"{key}={values}" for key, values in self.axes.items()]
        return [*self.overrides, *axes, *(["hydra.sweeper.params=null"] if axes else [])]


def read(
    hydra: Hydra,
    job: str,
    overrides: Sequence[str],
    *,
    config_name: str | None = None,
    multirun: bool = False,
    config_dir: str | None = None,
) -> Request:
    """Compose the configs of one run or a sweep, and find every fault of the overrides and files on the way.

    Args:
        config_dir: that `hydra` was opened with.
    """
    reader = _Reader(hydra, JOBS[job], config_name or job)
    request = Request()
    if issubclass(JOBS[job], ShareJob):
        overrides = [_quoted(line) for line in overrides]
    if not any(source.is_config(reader.config_name) for source in hydra.config_loader.get_sources()):
        request.faults.append(
            f"--config-name {config_name}: there is no {config_name}.yaml. Give --config-dir with the folder that "
            f"holds it; it begins with `defaults: [{job}, …]`."
        )
        return request
    # Where the user's files are comes first: it says which choices there are.
    for line in sorted(overrides, key=lambda each: not each.startswith("hydra.searchpath=")):
        faults = reader.override_faults(line, multirun) or reader.experiment_faults(line, job, overrides)
        request.faults += faults
        if faults:
            name = re.split("[=@]", line.lstrip("+~"))[0]
            request.unclear.add(name if name in reader.keys else name.partition(".")[0])
        else:
            request.overrides.append(reader.as_hydra_wants(line))
    launcher_faults = reader.launcher_faults(request.overrides) if multirun and _LAUNCHER not in request.unclear else []
    if launcher_faults or _LAUNCHER in request.unclear:
        request.faults += launcher_faults
        request.overrides = [line for line in request.overrides if not _of_launcher(line)]
    request.axes = reader.axes(request.overrides)
    foreign = config_dir is not None or bool(reader.search_path)
    if multirun and reader.tracks_nothing(request):
        # A sweep is logged where nothing asks for an account: as files, for `wandb sync`.
        request.overrides.append("tracking=wandb_offline")
    request.common = reader.single(request.overrides)
    for lines in reader.sweep(request.swept) if multirun else [request.overrides]:
        try:
            node = reader.compose(lines)
            for key in reader.keys.values():
                section, _, name = key.name.rpartition(".")
                parent = OmegaConf.select(node, section) if section else node
                if OmegaConf.is_missing(parent, name):
                    parent[name] = [] if typing.get_origin(key.annotation) is list else "missing"
                    if section not in request.unclear:
                        request.faults.append(f"{key.name} is missing. Give {key.name}=<{key.type}>: {key.help}.")
                        request.unclear.add(key.name)
            request.lines.append(lines)
            run = as_config(node)
            if foreign:
                request.faults += reader.unasked(request.overrides, run)
            request.runs.append(run)
        except _COMPOSITION_ERRORS as error:
            request.faults += reader.composition_faults(lines, error)
    request.faults = list(dict.fromkeys(request.faults))
    return request


def as_config(node: typing.Any) -> typing.Any:
    """What was composed, as the job's dataclass. One adapter is one run, whether its folder or a pattern was given."""
    config: typing.Any = OmegaConf.to_object(node)
    if hasattr(config, "model"):
        config.model.adapter = models.adapter_of(config.model)
    return config


def compose(job: str, overrides: Sequence[str] = (), config_dir: str | None = None) -> JobConfig:
    """The config of one run, as `xtransplant <job> <overrides>` has it.

    Raises:
        XTransplantError: with every fault that can be found without loading a model or building a task.
    """
    with open_hydra(config_dir) as hydra:
        request = read(hydra, job, overrides, config_dir=config_dir)
    faults = [*request.faults, *check_all(request)]
    if faults:
        raise refusal(faults)
    return request.runs[0]


def _quoted(line: str) -> str:
    """What Hydra would read otherwise: a short name as a number (12e456 is one), a setting of set=[a=1,b=[2,3]] not at
    all, for in its grammar a list's values have no = in them."""
    name, _, given = line.partition("=")
    if name in ("run", "a", "b") and re.fullmatch("[0-9a-f]+", given):
        return f'{name}="{given}"'
    if name != "set" or "=" not in given or given.startswith(('["', "['")):
        return line
    text = given[1:-1] if given[0] == "[" and given[-1] == "]" else given
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if sign in ("'", '"') and quote in ("", sign):
            quote = "" if quote else sign
        elif not quote:
            depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return f"set={json.dumps([each.strip() for each in parts], ensure_ascii=False)}"


def recorded(
    job: str, content: Mapping[str, typing.Any], given: Sequence[str], where: str
) -> tuple[RunJob | None, list[str]]:
    """The config that a run has recorded, where settings of one's own take the place of its own; and every fault.

    Keys that it lacks, because it is older than they are, are at their defaults.

    Args:
        given: key=value, as on the job's command line.
        where: the file, for messages.
    """
    schema = JOBS[job]
    parser = OverridesParser.create()
    faults: list[str] = []
    values: dict[str, typing.Any] = {}
    for line in given:
        try:
            override = parser.parse_overrides([line])[0]
            values[override.key_or_group] = override.value()
        except HydraException:
            name, _, text = line.partition("=")
            if any(key.name == name and key.annotation in (str, str | None) for key in keys(schema)):
                values[name] = text  # a path may hold any sign
                continue
            faults.append(f"set: {line} cannot be read. Give key=value; text with special characters needs quotes.")
    faults += [f"set: {fault}" for key, value in values.items() for fault in faults_of(schema, key, value)]
    try:
        node = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(record.literal(content)))
        other = _unlike(content, OmegaConf.to_container(node, resolve=True, enum_to_str=True))
        for key, value in values.items() if not faults else ():
            OmegaConf.update(node, key, record.literal(value), merge=False)
        made: typing.Any = OmegaConf.to_object(node)
    except _COMPOSITION_ERRORS as error:
        # One by one, which takes long, to name them.
        named = faults_of(schema, "", content, where=f"{where}: ")
        return None, [*faults, *(named or [f"{where}: not a config of {job} ({' '.join(str(error).split())})."])]
    # What is taken for something else, as OmegaConf takes 2 for true, no run has written.
    faults += [f"{where}: {key} is not as a run writes it. Do not trust it." for key in other]
    return (None if faults else made), faults


def _unlike(content: typing.Any, read: typing.Any, name: str = "") -> list[str]:
    """The keys of plain values that were read as other ones."""
    if isinstance(content, Mapping) and isinstance(read, Mapping):
        names = {key: f"{name}.{key}" if name else str(key) for key in content}
        return [each for key, full in names.items() for each in _unlike(content[key], read.get(key), full)]
    return [] if content == read and isinstance(content, bool) == isinstance(read, bool) else [name]


def check_all(request: Request) -> list[str]:
    """Every fault of the values of a request's runs, and of all of them together."""
    faults = secrets_for_hydra(request.overrides)
    faults += [fault for config in request.runs for fault in check(config, request.unclear)]
    faults += idle_settings(request.runs, request.unclear)
    asked = [each for each in request.runs if isinstance(each, EvaluateConfig) and each.selection_of_base]
    if asked and "selection" not in request.unclear and not any(map(selection.takes_of_base, asked)):
        faults.append(
            "selection_of_base=true has no effect without a selection for a fine-tuned model: give it as selection, "
            "with model.adapter, or as model.path a folder of `xtransplant sft method=full`."
        )
    return faults


def check(config: JobConfig, unclear: Collection[str] = ()) -> list[str]:
    """Every fault of the values that can be found without loading a model or building a task.

    Args:
        unclear: sections and keys with a fault that is known already.
    """
    faults = secrets(config)
    if faults:
        return faults  # the messages of others show what was given
    num_layers = None
    if isinstance(config, ModelJob) and not {"model", "model.path"} & set(unclear) and config.model.path.strip():
        faults += models.check(config.model)
        num_layers = models.num_layers(config.model)
    faults += validate(config, num_layers, unclear)
    if isinstance(config, TaskJob) and not {"task", "task.tasks", "language_pair"} & set(unclear):
        faults += template_faults(config.task) or families.check(
            config.task, config.language_pair, config.transplant.mean_over
        )
    if isinstance(config, SftConfig) and not {"task", "task.tasks", "data", "data.languages", "data.path"} & set(
        unclear
    ):
        faults += _training_data_faults(config)
    if isinstance(config, ShareJob):
        places = {name: getattr(config, name, None) for name in ("run", "a", "b")}
        for name, place in places.items():
            if place is not None and place.strip() and name not in unclear:
                faults += bundle.faults(place, name, config.output_dir)
        if isinstance(config, ExportConfig) and config.to is not None and exchange.is_address(config.to):
            faults += bundle.faults(config.to, "to")
    if isinstance(config, EvaluateConfig) and not {"model", "task", "language_pair"} & set(unclear):
        try:
            chosen = selection.of_run(config)
        except XTransplantError as error:
            faults.append(str(error))
        else:
            if chosen is not None and config.transplant.control is Control.zero:
                how = selection.effective(config, chosen).transplant.intervention
                if how.match_norm or how.mode is Mode.add:
                    faults.append(
                        "transplant.control=zero: the selection adds its vectors, or matches their norms: nothing "
                        "would change. Use another control."
                    )
            for cell in chosen.cells if chosen is not None else []:
                if num_layers is not None and max(cell.source, cell.target) >= num_layers:
                    faults.append(
                        f"selection={config.selection}: it names layers {cell.source} and {cell.target}, and "
                        f"{config.model.path} has {num_layers}. Give the model that it was made for."
                    )
    return faults


def _training_data_faults(config: SftConfig) -> list[str]:
    """What is wrong with the names of a task, or with the place of instruction data; languages: `checks`."""
    if not config.trains_on_task:
        return training_data.check(config.data)
    faults = template_faults(config.task)
    return faults if faults or not config.task.tasks else training_data.check_task(config.task, config.data.languages)


# What Hydra, OmegaConf and YAML raise for a fault in an override or in a user's file.
_COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError)
# Lines of their messages that name their own parts.
_NOISE = ("full_key:", "object_type=", "reference_type=", "See https:", "provider=", "Config search path:")


# Leave to run code: given on the command line, or not at all.
_BY_NAME = ("model.trust_remote_code", "model.allow_pickle", "task.allow_code")
# Of Hydra's own section, what a file may say: what describes the run, the axes of an experiment, and numbers and names
# of a launcher of ours.
_OF_FILES = re.compile(
    r"(runtime|overrides|sweeper\.params)\..*|mode|verbose|sweeper\.max_batch_size|job\.(name|id|num|override_dirname|config_name|env_copy)"
    r"|launcher\.(?!setup|additional|init|address|_target_|_convert_|_partial_|_args_|_recursive_)\w+"
)


def _may_be_in_a_file(name: str, value: typing.Any) -> bool:
    from hydra_plugins.xtransplant_launchers import LAUNCHERS

    if name == "launcher._target_":
        return value in [f"{each.__module__}.{each.__name__}" for each in LAUNCHERS]
    return _OF_FILES.fullmatch(name) is not None or (name == "launcher._convert_" and value == "all")


def _flat(values: typing.Any, name: str = "") -> dict[str, typing.Any]:
    """Dotted name -> value; lists, and mappings without entries, are values."""
    if not isinstance(values, dict) or not values:
        return {name: values}
    return {
        full: each
        for key, value in values.items()
        for full, each in _flat(value, f"{name}.{key}" if name else str(key)).items()
    }


@functools.lru_cache(maxsize=8)
def _usual(schema: str, groups: tuple[str, ...]) -> list[dict[str, typing.Any]]:
    """Hydra's own section without files of the user's: as the job has it, and as Hydra has it by itself."""
    job = next(name for name, each in JOBS.items() if each.__name__ == schema)
    with open_hydra() as plain:
        try:
            composed = plain.compose_config(job, list(groups), RunMode.RUN)
        except _COMPOSITION_ERRORS:  # a choice that only the user's files have
            composed = plain.compose_config(job, [], RunMode.RUN)
        both = (composed, plain.compose_config(None, [], RunMode.RUN))
    return [_flat(OmegaConf.to_container(each.hydra)) for each in both]


class _Reader:
    """Reads the overrides of one job."""

    def __init__(self, hydra: Hydra, schema: type[JobConfig], config_name: str) -> None:
        self.hydra, self.schema, self.config_name = hydra, schema, config_name
        self.search_path: list[str] = []  # overrides of hydra.searchpath
        self.hydra_section = OmegaConf.create()  # of what was composed last
        self.parser = OverridesParser.create(config_loader=hydra.config_loader)
        self.keys = {key.name: key for key in keys(schema)}

    def compose(self, overrides: list[str]) -> DictConfig:
        composed = self.hydra.compose_config(self.config_name, overrides, RunMode.RUN)
        with open_dict(composed):
            self.hydra_section = composed.pop("hydra")
        # A user's root config may lack the schema.
        return OmegaConf.merge(OmegaConf.structured(self.schema), composed)  # type: ignore[return-value]

    def unasked(self, overrides: Sequence[str], run: typing.Any) -> list[str]:
        """What a file of the user's, who may have it from a stranger, says in place of the person at the command line:
        that code may run, or what Hydra builds, calls, writes and sets before a run begins.

        Args:
            overrides: those that were given; not those that a file sweeps over.
            run: what was composed last.
        """
        parsed = self.parser.parse_overrides(list(overrides))
        keys = {each.key_or_group: each for each in parsed}
        given = {key for key, each in keys.items() if "." in key or isinstance(each.value(), dict)}
        faults = []
        for name in _BY_NAME:
            section, _, key = name.partition(".")
            if getattr(getattr(run, section, None), key, False) and not {section, name} & given:
                faults.append(
                    f"{name}=true: a file says so, and not you. If you trust what it is for, give {name}=true."
                )
        # Of a launcher that a file chooses, its own settings are as usual as of one that was given.
        chosen = self.hydra_section.runtime.choices.get("hydra/launcher")
        groups = [line for line in overrides if line.startswith("hydra/")]
        if chosen is not None and not any(line.startswith("hydra/launcher=") for line in groups):
            groups.append(f"hydra/launcher={chosen}")
        usual = _usual(self.schema.__name__, tuple(groups))
        for name, value in _flat(OmegaConf.to_container(self.hydra_section)).items():
            asked = any(f"hydra.{name}.".startswith(f"{each}.") for each in given)
            if not asked and not any(value == each.get(name) for each in usual) and not _may_be_in_a_file(name, value):
                faults.append(
                    f"hydra.{name}={shown(value)}: a file says so, and only you may: it can run code, or write "
                    "elsewhere. Leave it out there; give it on the command line if you need it."
                )
        return faults

    def sweep(self, overrides: list[str]) -> list[list[str]]:
        """The overrides of each run."""
        return BasicSweeper.split_arguments(self.parser.parse_overrides(overrides), None)[0]

    def axes(self, overrides: list[str]) -> dict[str, str]:
        """What an experiment's file sweeps over (`hydra.sweeper.params`): key -> its values, joined by commas.

        Without those that the overrides give themselves.
        """
        parsed = self.parser.parse_overrides(overrides)
        if not any(each.key_or_group == "experiment" for each in parsed):
            return {}
        try:
            composed = self.hydra.compose_config(self.config_name, self.single(overrides), RunMode.MULTIRUN)
        except _COMPOSITION_ERRORS:
            return {}  # said when the runs are composed
        given = [each.key_or_group for each in parsed]
        params = OmegaConf.select(composed, "hydra.sweeper.params")
        return {str(key): str(values) for key, values in (params or {}).items() if key not in given}

    def tracks_nothing(self, request: Request) -> bool:
        """Neither the command nor a file says whether the job's runs are tracked, and they could be."""
        parsed = self.parser.parse_overrides(request.overrides)
        named = {*(each.key_or_group for each in parsed), *request.axes}
        if "tracking" in named or importlib.util.find_spec("wandb") is None:
            return False
        try:
            given = self.single(request.overrides)
            found = self.hydra.config_loader.compute_defaults_list(self.config_name, given, RunMode.MULTIRUN).overrides
        except _COMPOSITION_ERRORS:
            return False  # said when the runs are composed
        return "tracking" not in found.override_choices and found.known_choices.get("tracking") == "none"

    def single(self, overrides: Sequence[str]) -> list[str]:
        """Those that a sweep has in common."""
        parsed = self.parser.parse_overrides(list(overrides))
        return [line for line, each in zip(overrides, parsed, strict=True) if not each.is_sweep_override()]

    def choices(self, group: str) -> list[str]:
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_/]*", group):
            return []
        loader = self.hydra.config_loader
        # To ask the loader costs 20 ms.
        if not self.search_path and not any(source.is_group(group) for source in loader.get_sources()):
            return []
        found = loader.get_group_options(group, config_name=self.config_name, overrides=self.search_path)
        for folder in loader.list_groups(group):
            found += [f"{folder}/{each}" for each in self.choices(f"{group}/{folder}")]
        return found

    def override_faults(self, line: str, multirun: bool) -> list[str]:
        if line == "=":
            return ["=: stands alone. Write key=value without spaces, e.g. limit=100."]
        try:
            override = self.parser.parse_overrides([line])[0]
        except HydraException as error:
            return [self._unreadable(line, str(error))]
        key = override.key_or_group
        if key == "hydra.searchpath":
            places = override.value()
            for place in map(str, places) if isinstance(places, list) else []:
                if not place.startswith("pkg://") and not Path(place.removeprefix("file://")).is_dir():
                    return [f"{line}: no such folder: {place}. Give folders that exist: [file:///path/to/conf]."]
                try:
                    _ = place.startswith("pkg://") or catalogue.config_folder(place.removeprefix("file://"))
                except XTransplantError as error:
                    return [f"{line}: {error}"]
            self.search_path.append(line)
        if _of_launcher(line):
            if override.is_sweep_override():
                return [f"{line}: one launcher for all runs. Give one value."]
            if not multirun and (key != _LAUNCHER or override.value() in self.choices(key)):
                return [f"{line}: a single run has no launcher. Add -m, or leave this out."]
        if override.is_hydra_override() and key != _LAUNCHER:
            return []  # Hydra's own: judged when composed
        if override.is_sweep_override():
            if key == "experiment":
                return [f"{line}: one experiment at a time, for each has a sweep of its own."]
            if not multirun:
                return [
                    f"{line}: several values. For a run with each of them add -m; for a list write "
                    f"{key}=[a,b]; for text with a comma quote it twice: {key}='\"a,b\"'."
                ]
            if not override.is_discrete_sweep():
                return [f"{line}: a sweep needs its values. Give them as {key}=a,b or {key}=range(0,18)."]
            values = list(override.sweep_string_iterator())
            if not values:
                return [f"{line}: matches none of the choices. Choices of {key}: {', '.join(self.choices(key))}."]
            return [fault for each in values for fault in self.override_faults(f"{key}={each}", False)]
        if override.is_delete():
            return [f"{line}: a key cannot be deleted. Give it a value; null where the key allows it."]
        value = override.value()
        groups = {each.partition(".")[0] for each in self.keys} | {"experiment", _LAUNCHER}
        if override.package is None and key not in groups and self.choices(key):
            return faults_of(self.schema, key, value)  # a choice for other jobs
        if (
            isinstance(value, str)
            and override.package is None
            and any(source.is_config(f"{key}/{value}") for source in self.hydra.config_loader.get_sources())
        ):
            return []
        choices = self.choices(key)
        if (not choices and override.package is None) or isinstance(value, dict):
            return faults_of(self.schema, key, value)
        if override.package is not None:
            return [f"{line}: a choice cannot be put elsewhere. Write {key}=<choice>."]
        if value in choices:
            return []
        refused = families.why_refused(str(value)) if key == "task" else None
        if refused is not None:
            return [f"{key}={shown(value)}: {refused}"]
        hint = did_you_mean(str(value), choices)
        if key == "language_pair":
            meant = catalogue.pair_meant(str(value))
            hint = f"Did you mean {meant}? " if meant is not None else ""
        # Of language pairs, the choices are endless: the rule says more than the one that is a file.
        name = key.removeprefix("hydra/")
        known = "" if key == "language_pair" else f"Choices: {', '.join(choices)}. "
        return [f"{key}={shown(value)}: there is no such {name}. {hint}{known}{_OTHER_CHOICES.get(key, '')}".rstrip()]

    def experiment_faults(self, line: str, job: str, overrides: Sequence[str]) -> list[str]:
        """Is an experiment for this job? Its file's first command says which it is for, the others what comes then."""
        key, _, name = line.lstrip("+").partition("=")
        path = self._file(f"experiment/{name}") if key == "experiment" else None
        if path is None:
            return []
        commands = catalogue.jobs_of(name, path)
        jobs = list(commands) or [each for each in JOBS if issubclass(JOBS[each], TaskJob)]
        if job not in jobs:
            return [f"experiment={name} is for {' and '.join(jobs)}, not {job}."]
        if job == jobs[0] or job not in commands:
            return []
        keys = {each.partition("=")[0] for each in shlex.split(commands[job]) if "=" in each}
        if keys.isdisjoint({each.partition("=")[0] for each in overrides} - {"experiment", "output_dir"}):
            return [f"experiment={name} is for {jobs[0]} first. For {job}, as its file says: {commands[job]}"]
        return []

    def _file(self, config_path: str) -> Path | None:
        """The file that a choice comes from."""
        for source in self.hydra.config_loader.get_sources():
            if source.is_config(config_path) and source.scheme() in ("file", "pkg"):
                root = Path(source.path) if source.scheme() == "file" else Path(str(resources.files(source.path)))
                return root / f"{config_path}.yaml"
        return None

    def launcher_faults(self, overrides: list[str]) -> list[str]:
        """What is wrong with the launcher that is chosen, and with its keys."""
        from hydra_plugins import xtransplant_launchers

        parsed = self.parser.parse_overrides(overrides)
        others = [line for line in self.single(overrides) if not _of_launcher(line) or line.startswith(_LAUNCHER)]
        try:
            composed = self.hydra.compose_config(self.config_name, others, RunMode.MULTIRUN).hydra
        except _COMPOSITION_ERRORS:
            return []  # said when the runs are composed
        keys_of = {each.key_or_group: each for each in parsed if each.key_or_group.startswith("hydra.launcher.")}
        given = {key.removeprefix("hydra.launcher."): each.value() for key, each in keys_of.items()}
        name = composed.runtime.choices[_LAUNCHER]
        return xtransplant_launchers.faults(name, {**(composed.launcher or {}), **given})

    def _unreadable(self, line: str, why: str) -> str:
        key, equals, value = line.partition("=")
        if not equals:
            groups = [*(each.name for each in dataclasses.fields(self.schema)), "experiment"]
            meant = [f"{group}={line}" for group in groups if line in self.choices(group)]
            hint = f"Did you mean {meant[0]}? " if meant else ""
            return f"{line}: not of the form key=value. {hint}Give e.g. limit=100; the keys are in the job's --help."
        named = re.fullmatch(r"(?!hydra|experiment$)\w[\w.]*", key) is not None
        if named and not any(f"{key}.".startswith(f"{known}.") or known.startswith(f"{key}.") for known in self.keys):
            return faults_of(self.schema, key, value)[0]  # however the value would have to be written
        texts = [each.strip() for each in value.strip("[]").split(",")] if value.startswith("[") else value
        quoted = shlex.quote(f"{key}={json.dumps(texts, ensure_ascii=False)}")
        why = why.splitlines()[0].removeprefix("LexerNoViableAltException: ").partition(" expecting")[0]
        return f"{line}: cannot be read ({why}). Text with special characters needs quotes of its own: {quoted}"

    def as_hydra_wants(self, line: str) -> str:
        """Hydra asks for a + before new names in a mapping, and refuses it before a key that exists."""
        if line.startswith("hydra.launcher.") and line.partition("=")[2].startswith("{"):
            return f"++{line}"  # names of sbatch's or Ray's, which no preset has
        if line.startswith("hydra"):
            return line
        body = line.lstrip("+")
        key = body.partition("=")[0]
        if key == "experiment":
            return body
        value = body.partition("=")[2]
        if key in self.keys and self.keys[key].annotation is str and _LIKE_A_NUMBER.fullmatch(value):
            return f'{key}="{value}"'  # a short name such as 4e1234567890, and no such number
        mappings = [each.name for each in self.keys.values() if typing.get_origin(each.annotation) is dict]
        if any(key == name or key.startswith(f"{name}.") for name in mappings):
            return f"++{body}"
        sections = {name.partition(".")[0] for name in self.keys}
        return body if key.partition(".")[0] in sections else line

    def composition_faults(self, overrides: list[str], error: Exception) -> list[str]:
        """Each override is composed alone, since Hydra stops at the first fault."""
        faults = []
        for alone in [[], *([each] for each in overrides if not _of_launcher(each))]:
            try:
                self.compose([*self.search_path, *alone])
            except _COMPOSITION_ERRORS as each:
                faults += self._explain(each)
        return faults or self._explain(error)

    def _explain(self, error: BaseException) -> list[str]:
        text = str(error)
        cause = error.__cause__
        if cause is not None:
            text = f"{text}\n{cause}"
        named = re.search("In '([^']+)'", text)
        faults = self._file_faults(named[1]) if named else []
        if isinstance(error, yaml.YAMLError):
            text = f"Not YAML: {text}.\nMend the file."
        text = text.removeprefix("XTransplantError raised while resolving interpolation: ")  # OmegaConf's words for it
        lines = [line.strip() for line in text.splitlines()]
        return faults or [" ".join(line for line in lines if line and not line.startswith(_NOISE))]

    def _file_faults(self, config_path: str) -> list[str]:
        """Every bad key of a file."""
        for source in self.hydra.config_loader.get_sources():
            if source.is_config(config_path) and source.scheme() in ("file", "pkg"):
                result = source.load_config(config_path)
                content = OmegaConf.to_container(result.config, resolve=False)
                package = result.header["package"] or config_path.rpartition("/")[0].replace("/", ".")
                package = "" if package == "_global_" else package
                place = f"{source.path}/{config_path}.yaml" if source.scheme() == "file" else f"{config_path}.yaml"
                if not isinstance(content, dict):
                    return [f"{place}: holds no keys but {shown(content)}. Write it as lines of key: value."]
                ours = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
                return faults_of(self.schema, package, ours, where=f"{place}: ")
        return []
