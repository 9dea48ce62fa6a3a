"""A packtrain.toml for a team: commented, with what must be edited marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packtrain.errors import Refused, disk_error
from packtrain.settings import FILE_NAME

EDIT = "EDIT THIS"


@dataclass(frozen=True, slots=True)
class Profile:
    """A way to bring models from training to serving (docs/choosing.md). ``store`` is an example of its stores."""

    says: str
    store: str
    about_store: str
    registry: str = "store"
    pull: str = "cache"


_BUCKET = """\
A bucket, and a folder in it: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX (Google) or az://CONTAINER/PREFIX (Azure).
Credentials, region and endpoint come from where the provider's own tools look for them, such as AWS_PROFILE, AWS_REGION
and AWS_ENDPOINT_URL, or GOOGLE_APPLICATION_CREDENTIALS, or the role of the machine. They never stand in this file."""

_MLFLOW = """\
The MLflow server, which shows the versions and aliases that the ledger in the bucket decides. Credentials come from
MLflow's own variables: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN. They never
stand in this file."""

PROFILES: Mapping[str, Profile] = {
    "nfs": Profile(
        says="models on a shared volume that all machines mount; vLLM opens them there, without a copy",
        store="file:///mnt/models",
        about_store="""\
A folder on the volume, by the path at which every machine mounts it.
Which mount options matter: docs/shared-volumes.md""",
        pull="in-place",
    ),
    "object": Profile(
        says="models in a bucket; every serving machine keeps copies on its own disk",
        store="s3://my-bucket/models",
        about_store=_BUCKET,
    ),
    "mlflow": Profile(
        says="models in a bucket, registered in an MLflow server",
        store="s3://my-bucket/models",
        about_store=_BUCKET,
        registry="http://mlflow.example.com:5000",
    ),
    "hybrid": Profile(
        says="models in a bucket, registered in an MLflow server; every serving machine keeps copies on its own disk",
        store="s3://my-bucket/models",
        about_store=_BUCKET,
        registry="http://mlflow.example.com:5000",
    ),
}


def init(name: str, directory: Path, given: Mapping[str, str]) -> Path:
    """Writes the file of a profile into a directory; ``given`` are settings that are known already. Returns its path.

    Raises Refused, and changes nothing, for a directory as the store of a profile with MLflow, and if there is a file.
    """
    profile = PROFILES[name]
    store = given.get("store", profile.store)
    if profile.registry != "store" and store.startswith(("file:", "/")):
        raise Refused(
            f"the profile {name} needs a bucket: MLflow refuses directories like {store} as sources; "
            "nothing was written",
            hint="Give --store s3://BUCKET/PREFIX; or keep the registry in the directory: "
            "packtrain init --profile nfs.",
        )
    path = directory / FILE_NAME
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content(name, profile, given))
    except FileExistsError:
        raise Refused(f"{path} is there already", hint="Edit it, or move it away and run this again.") from None
    except OSError as error:
        raise disk_error(error, f"could not write {path}") from error
    return path


def content(name: str, profile: Profile, given: Mapping[str, str]) -> str:
    """The text of the file. A setting that is not ``given`` and has no good default is marked with EDIT."""
    if profile.pull == "in-place":
        kept = "what it has seen of the ledgers, and copies if it makes any (--no-in-place)"
    else:
        kept = "its copies, and what it has seen of the ledgers"

    def setting(key: str, value: str, about: str, *, edit: bool = False, used: bool = True) -> str:
        """Its comment and its line; a line that is not ``used`` is commented out."""
        text = given.get(key, value).replace("\\", "\\\\").replace('"', '\\"')
        off = "" if used or key in given else "# "
        return f'{_comment(about)}\n{off}{key} = "{text}"' + (f"  # {EDIT}" if edit and key not in given else "")

    parts = [
        _comment(
            f"Packtrain's settings, for the profile {name}:\n{profile.says}.\n\n"
            "This file counts in its folder and all below it. PACKTRAIN_* variables and flags win over it.\n"
            "All settings: docs/settings.md. Whether these are right: packtrain doctor"
        ),
        setting("store", profile.store, profile.about_store, edit=True),
        setting(
            "registry",
            profile.registry,
            'Where versions and aliases are registered. "store": in the store itself; nothing else has to run.'
            if profile.registry == "store"
            else _MLFLOW,
            edit=profile.registry != "store",
        ),
        setting(
            "pull",
            profile.pull,
            'How a version gets to vLLM. "cache": as a copy on this machine. "in-place": as the store\'s own folder.',
        ),
        setting(
            "cache_dir",
            "~/.cache/packtrain",
            f"Where this machine keeps {kept}. On a fast local disk.",
        ),
        setting("cache_quota", "100%", "How much the copies may take: 500GB, or a share of that disk."),
        setting("cache_free", "5%", "How much of that disk stays free for others."),
        setting("vllm", "vllm", "The command that starts vLLM, or its path.", used=False),
        setting("llamafactory", "llamafactory-cli", "The command that starts LLaMA-Factory, or its path.", used=False),
        setting("actor", "alice", "Who is written into the ledger; if not set, the login name.", used=False),
    ]
    return "\n\n".join(parts) + "\n"


def _comment(text: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())
