"""Models on the Hugging Face hub, by their name: owner/name."""

import re
from collections.abc import Sequence
from pathlib import Path

from .keys import needs

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def fetch(path: Path, files: Sequence[str]) -> Path | None:
    """The folder with the files of a repository, those that it has; None if there is no such name.

    What was fetched before is not fetched again.  The variables HF_TOKEN, HF_HOME and HF_HUB_OFFLINE do what they do
    for every program that uses the hub.

    Args:
        path: a name of the hub; neither a file nor a folder here.
        files: names within the repository; nothing else is fetched.

    Raises:
        ValueError: it cannot be fetched; the line says how to get it by other means.
    """
    name = path.as_posix()
    if not _NAME.fullmatch(name):
        return None
    hub = needs("huggingface_hub", "diffusers")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # of the network, of two HTTP libraries, and of the hub: they share no class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{name} is not a folder here and cannot be fetched from the Hugging Face hub ({reason}): on a computer "
            f"with a network run `hf download {name} --local-dir {path.name}`, copy the folder here, and give its path"
        ) from error
