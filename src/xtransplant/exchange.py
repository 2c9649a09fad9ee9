"""Bundles on the Hugging Face hub and on W&B: sent and fetched by their own clients, which know the account."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtransplant.types import XTransplantError

if TYPE_CHECKING:
    import wandb

_HUB = re.compile(
    r"hf://datasets/(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[\w./-]+\.zip)(@(?P<revision>[\w./-]+))?", re.ASCII
)
_WANDB = re.compile(
    r"wandb://(?P<entity>[\w.-]+)/(?P<project>[\w.-]+)/(?P<name>[\w.-]+)(:(?P<version>[\w.-]+))?", re.ASCII
)
_ADDRESS = re.compile(r"(hf|wandb)://.*", re.DOTALL)


def is_address(place: str) -> bool:
    """Whether a place is on the Hugging Face hub or W&B."""
    return _ADDRESS.fullmatch(place) is not None


def push(path: Path, address: str) -> str:
    """Send a bundle to a data set on the hub, or as an artifact to W&B. Returns where it can be seen.

    A repository that is not there is made, private. Both clients know the account from where they always do.

    Raises:
        XTransplantError: the address has no form that is known; the client refused.
    """
    hub, wandb = check_address(address, "to")
    try:
        if hub is not None:
            return _push_to_hub(path, hub["repository"], hub["file"])
        assert wandb is not None
        return _push_to_wandb(path, wandb["entity"], wandb["project"], wandb["name"])
    except Exception as error:
        raise _of_client("to", address, error) from error


def fetch(address: str, folder: Path, largest: int, key: str = "run") -> Path:
    """Get a bundle by its address, into a folder or the hub's own cache. Returns its file, which is not checked yet.

    Args:
        largest: bytes that it may have.
        key: of the config that names the address, for messages.

    Raises:
        XTransplantError: there is none, it is too large, or it cannot be reached.
    """
    hub, wandb = check_address(address, key)
    try:
        if hub is not None:
            return _fetch_from_hub(hub["repository"], hub["file"], hub["revision"], largest, f"{key}={address}")
        assert wandb is not None
        name = f"{wandb['entity']}/{wandb['project']}/{wandb['name']}:{wandb['version'] or 'latest'}"
        return _fetch_from_wandb(name, folder, largest, f"{key}={address}")
    except XTransplantError:
        raise
    except Exception as error:
        raise _of_client(key, address, error) from error


def check_address(address: str, key: str) -> tuple[re.Match[str] | None, re.Match[str] | None]:
    """Its parts, on the hub or on W&B.

    Raises:
        XTransplantError: it is of no form that is known, or names a version to be written to, which is not ours to say.
    """
    hub, wandb = _HUB.fullmatch(address), _WANDB.fullmatch(address)
    if (hub or wandb) is None or ".." in address:
        raise XTransplantError(
            f"{key}={address}: no address that is known. Give hf://datasets/<owner>/<repository>/<path>.zip or "
            "wandb://<entity>/<project>/<name>."
        )
    if key == "to" and hub is not None and hub["revision"] is not None:
        raise XTransplantError(f"to={address}: a bundle is added to the main branch. Leave @{hub['revision']} out.")
    if key == "to" and wandb is not None and wandb["version"] is not None:
        raise XTransplantError(f"to={address}: W&B numbers the versions itself. Leave :{wandb['version']} out.")
    return hub, wandb


def _of_client(key: str, address: str, error: Exception) -> XTransplantError:
    said = " ".join(str(error).split()) or type(error).__name__
    return XTransplantError(
        f"{key}={address}: {type(error).__name__}: {said[:300]}. Is the address right, and are you logged in "
        f"({'hf auth login' if address.startswith('hf') else 'wandb login'})?"
    )


def _push_to_hub(path: Path, repository: str, file: str) -> str:
    from huggingface_hub import HfApi

    hub = HfApi()
    hub.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
    message = f"Add {file}"
    done = hub.upload_file(
        path_or_fileobj=path, path_in_repo=file, repo_id=repository, repo_type="dataset", commit_message=message
    )
    return str(done)


def _fetch_from_hub(repository: str, file: str, revision: str | None, largest: int, named: str) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download

    if not constants.HF_HUB_OFFLINE:
        there = HfApi().get_paths_info(repository, [file], revision=revision, repo_type="dataset")
        if not there:
            raise XTransplantError(f"{named}: the repository has no such file.")
        _refuse_large(getattr(there[0], "size", 0), largest, named)
    return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))


def wandb_settings(**more: Any) -> wandb.Settings:
    """Of a run on W&B that says what it is given and nothing else: not what this machine is, nor code or packages, nor
    what is printed.

    Args:
        more: further settings.
    """
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        **more,
    )


def _push_to_wandb(path: Path, entity: str, project: str, name: str) -> str:
    import wandb

    with (
        tempfile.TemporaryDirectory(prefix="xtransplant-") as folder,
        wandb.init(
            entity=entity, project=project, job_type="export", dir=folder, mode="online", settings=wandb_settings()
        ) as run,
    ):
        artifact = wandb.Artifact(name, type=_ARTIFACT)
        artifact.add_file(str(path), name=_ARTIFACT_FILE, skip_cache=True, policy="immutable")
        run.log_artifact(artifact).wait()
        return str(run.url)


def _fetch_from_wandb(name: str, folder: Path, largest: int, named: str) -> Path:
    import wandb

    artifact = wandb.Api().artifact(name, type=_ARTIFACT)
    entry = artifact.manifest.entries.get(_ARTIFACT_FILE)
    # One file, and none that only says where else it lies: others of a stranger's are not fetched.
    if entry is None or entry.ref is not None:
        raise XTransplantError(
            f"{named}: an artifact without {_ARTIFACT_FILE}, so none that `xtransplant export` sent."
        )
    _refuse_large(entry.size or 0, largest, named)
    return Path(artifact.get_entry(_ARTIFACT_FILE).download(root=str(folder), skip_cache=True))


_ARTIFACT, _ARTIFACT_FILE = "xtransplant-bundle", "bundle.zip"


def _refuse_large(size: int, largest: int, named: str) -> None:
    if size > largest:
        raise XTransplantError(f"{named}: {size / 2**20:.0f} MB; a bundle has at most {largest / 2**20:.0f} MB.")
