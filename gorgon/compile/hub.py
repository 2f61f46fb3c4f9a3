"""Downloads one model from the Hugging Face hub; run by the converter's Python, not by ours.

Prints lines for ``gorgon.compile.converter``: ``progress 0.5``, then ``folder PATH`` or
``error REASON``. A broken connection is taken up again; after a stop, finished files stay in the
hub's cache and the one that was cut off begins anew, as huggingface_hub has it.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
from pathlib import Path

# Only what the converter reads; safetensors are preferred, .bin files the fallback.
_SMALL = ("*.json", "tokenizer.model", "*.txt", "*.jinja")
_POLL_SECONDS = 0.5


def main(name: str) -> int:
    """Download ``name`` (``owner/model``, with ``@revision`` if wanted)."""
    from huggingface_hub import errors

    try:
        print(f"folder {fetch(*name.partition('@')[::2])}")
    except errors.RepositoryNotFoundError:
        print("error no such model on the hub, or it needs a token (HF_TOKEN)")
    except errors.GatedRepoError:
        print("error its licence must be accepted on the hub first, then set HF_TOKEN")
    except errors.HFValidationError:
        print("error neither a folder nor a GGUF file nor a name on the hub such as owner/model")
    except errors.HfHubHTTPError as error:
        print(f"error the hub answered: {_one_line(error)}")
    except NoSpaceError as error:
        print(f"error {error}")
    except Exception as error:  # connection errors are of several libraries
        print(f"error no answer from the hub ({type(error).__name__}: {_one_line(error)})")
    else:
        return 0
    return 1


class NoSpaceError(Exception):
    """The hub's cache has too little room."""


def fetch(name: str, revision: str) -> str:
    """Download and return the folder."""
    from huggingface_hub import HfApi, constants, snapshot_download

    info = HfApi().model_info(name, revision=revision or None, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    has_safetensors = any(file.endswith(".safetensors") for file in sizes)
    wanted = [*_SMALL, "model*.safetensors" if has_safetensors else "pytorch_model*.bin"]
    total = sum(
        size for file, size in sizes.items() if any(Path(file).match(glob) for glob in wanted)
    )
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"
    _check_space(blobs, total)
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(blobs, total, ended), daemon=True)
    watcher.start()
    try:
        return str(snapshot_download(name, revision=info.sha, allow_patterns=wanted))
    finally:
        ended.set()
        watcher.join()


def _check_space(blobs: Path, total: int) -> None:
    place = blobs
    while not place.exists():
        place = place.parent
    needed, free = total - _size(blobs, finished=True), shutil.disk_usage(place).free
    if needed > free:
        raise NoSpaceError(
            f"the download needs {needed / 1e9:.1f} GB in {place}, {free / 1e9:.1f} GB are free"
        )


def _watch(blobs: Path, total: int, ended: threading.Event) -> None:
    while not ended.wait(_POLL_SECONDS):
        print(f"progress {min(1.0, _size(blobs) / max(total, 1)):.4f}", flush=True)


def _size(blobs: Path, finished: bool = False) -> int:
    """Bytes in the cache, those of files on their way only unless ``finished``."""
    paths = [*blobs.iterdir()] if blobs.is_dir() else []
    sizes = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # just got its final name
            if not (finished and path.suffix == ".incomplete"):
                sizes.append(path.stat().st_size)
    return sum(sizes)


def _one_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
