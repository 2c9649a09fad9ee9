"""Whoever installs xtransplant, from the repository or from a wheel, has every config and task file."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.equivalence.tiny import save_checkpoint
from tests.integration.local_tasks import write_tasks

MAPPED = {"xtransplant.conf": "conf", "xtransplant.tasks": "tasks"}  # package -> folder of the repository
FOLDERS = (".ci", "benchmarks", "conf", "docs", "src", "tasks", "tests")
LEFTOVERS = shutil.ignore_patterns("__pycache__", "*.py[co]", "*.egg-info")


@dataclass(frozen=True)
class Environment:
    """A virtual environment in which only the wheel is installed; the other packages are this one's."""

    bin: Path
    elsewhere: Path  # an empty folder to run in

    def run(self, program: str, *arguments: str) -> str:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(self.bin / program), *arguments]
        result = subprocess.run(command, cwd=self.elsewhere, env=variables, capture_output=True, text=True)
        assert result.returncode == 0, f"{command}: {result.stdout}\n{result.stderr}"
        return result.stdout


def files_below(folder: Path) -> set[str]:
    """Every file below `folder`, relative to it, except those that Python compiles."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


@dataclass(frozen=True)
class Built:
    sources: Path  # the copy of the repository that both were built from
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The source distribution, and the wheel that is built from it, as an index would hand it on.

    Built from a copy: a list of files left over from an earlier build would be taken into account.
    """
    copy = tmp_path_factory.mktemp("sources")
    for path in project_root.iterdir():
        if path.is_file() and path.name != "PKG-INFO":  # that is the source distribution's own
            shutil.copy(path, copy)
    for name in FOLDERS:
        shutil.copytree(project_root / name, copy / name, ignore=LEFTOVERS)
    # What runs in a checkout leave behind must stay out.
    (copy / "tasks" / "__pycache__").mkdir()
    (copy / "tasks" / "__pycache__" / "left.cpython-311.pyc").touch()
    (copy / "outputs" / "evaluate").mkdir(parents=True)
    (copy / "outputs" / "evaluate" / "results.json").touch()
    shutil.copy(project_root / "outputs" / "README.md", copy / "outputs")
    result = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (sdist,), (wheel,) = (list((copy / "dist").glob(f"*.{kind}")) for kind in ("tar.gz", "whl"))
    return Built(copy, sdist, wheel)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=os.name != "nt")
    scheme = {"base": str(folder), "platbase": str(folder)}
    bin_ = Path(sysconfig.get_path("scripts", "venv", vars=scheme))
    site = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    # A folder that a .pth file adds has its own .pth files ignored, and with them the editable install.
    site.joinpath("others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(bin_ / "python"), "--disable-pip-version-check"]
    install = ["install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(built.wheel)]
    result = subprocess.run([*pip, *install], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return Environment(bin_, tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.parametrize("package", MAPPED)
def test_this_environment_sees_every_file(package: str, project_root: Path) -> None:
    """The editable install that `make install` makes."""
    seen = files_below(Path(str(importlib.resources.files(package))))
    assert seen == files_below(project_root / MAPPED[package])


def test_the_source_distribution_holds_the_repository_and_nothing_else(built: Built, project_root: Path) -> None:
    """Also what tests, documentation and releases need, and none of what lies about in a checkout."""
    if not (project_root / ".git").exists():
        pytest.skip("what belongs to the repository is asked of git, and this is no checkout")

    def listed(*which: str) -> set[str]:
        done = subprocess.run(["git", "ls-files", *which], cwd=project_root, capture_output=True, text=True, check=True)
        return {name for name in done.stdout.splitlines() if (project_root / name).is_file()}

    with tarfile.open(built.sdist) as archive:
        files = {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}
    packed = {name for name in files - {"PKG-INFO", "setup.cfg"} if ".egg-info/" not in name}  # setuptools' own
    missing = listed() - packed
    many = packed - listed() - listed("--others", "--exclude-standard")  # a new file is not tracked yet
    assert not missing and not many, f"missing: {sorted(missing)}; too many: {sorted(many)}; see MANIFEST.in"


def test_the_wheel_holds_every_file_and_no_other(built: Built, project_root: Path) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {"xtransplant": "src/xtransplant", "hydra_plugins": "src/hydra_plugins", **MAPPED}
    expected = {
        f"{package.replace('.', '/')}/{name}"
        for package, folder in sources.items()
        for name in files_below(project_root / folder)
    }
    assert packed == expected, (
        f"missing from the wheel: {sorted(expected - packed)}; too many: {sorted(packed - expected)}; "
        "see [tool.setuptools] in pyproject.toml"
    )


def test_the_wheel_runs_from_any_folder(installed: Environment, project_root: Path) -> None:
    program = (
        "import importlib.resources as r, xtransplant; print(xtransplant.__file__);"
        f"print(*[r.files(package) for package in {list(MAPPED)}], sep='\\n')"
    )
    places = [Path(line) for line in installed.run("python", "-c", program).splitlines()]
    environment = installed.bin.parent.resolve()
    assert all(environment in place.resolve().parents for place in places), places
    for place, folder in zip(places[1:], MAPPED.values(), strict=True):
        assert files_below(place) == files_below(project_root / folder)


def test_the_wheel_brings_the_command(installed: Environment) -> None:
    assert "evaluate" in installed.run("xtransplant", "--help")


def test_the_wheel_brings_the_launchers(installed: Environment) -> None:
    """The presets, and the classes that they name, which Hydra finds by itself there."""
    shown = installed.run("xtransplant", "evaluate", "-m", "hydra/launcher=joblib", "limit=1,2", "--cfg", "hydra")
    (target,) = {line.split()[-1] for line in shown.splitlines() if "xtransplant_launchers" in line}
    program = (
        "from hydra.core.plugins import Plugins; from hydra.plugins.launcher import Launcher;"
        "print(*(f'{each.__module__}.{each.__name__}' for each in Plugins.instance().discover(Launcher)))"
    )
    assert target in installed.run("python", "-c", program).split()


def test_the_wheel_evaluates_with_the_users_own_files(installed: Environment, tmp_path: Path) -> None:
    """Our tasks and the user's, a model file of the user's; none of it in the folder where it runs."""
    checkpoint = save_checkpoint("llama", tmp_path / "checkpoint")
    conf = tmp_path / "my-conf"
    (conf / "model").mkdir(parents=True)
    (conf / "model" / "mine.yaml").write_text(f"name: mine\npath: {checkpoint}\n", encoding="utf-8")
    given = ["evaluate", "--config-dir", str(conf), "model=mine", "transplant=ffn", "limit=2"]
    assert "cldr_language_sw" in installed.run("xtransplant", *given, "task=cldr_language", "language_pair=en-sw")
    tasks = write_tasks(tmp_path / "my-tasks")
    own = ["task=custom", 'task.tasks=["colour_choice_{lang}"]', f"task.include_path=[{tasks}]", "task.key=id"]
    assert "colour_choice_sw" in installed.run("xtransplant", *given, *own, "language_pair=en-sw")


def test_version_and_entry_point(project_root: Path) -> None:
    import xtransplant

    assert importlib.metadata.version("xtransplant") == xtransplant.__version__
    (entry,) = importlib.metadata.entry_points(group="lm_eval.models", name="xtransplant")
    assert isinstance(entry.load(), type)


def test_constraints_are_plain_pins(project_root: Path) -> None:
    """No address of a registry and no build tag: the file must work with any index."""
    lines = project_root.joinpath("constraints.txt").read_text(encoding="utf-8").splitlines()
    assert lines
    for line in lines:
        name, _, version = line.partition("==")
        assert name.replace("-", "").replace("_", "").isalnum(), line
        assert version.replace(".", "").isalnum(), line
