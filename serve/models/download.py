"""Fetches a GGUF from a hub: goes on where it was broken off, and is not believed before its hash is right.

huggingface_hub knows the hub (addresses, revisions, tokens); the bytes are fetched here, because its own
download begins anew after each interruption (1.33 throws the part away) and compares sizes, not hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from rig import paths
from rig.atomic import sync_folder, write_text
from rig.errors import RigError, WrongUse
from rig.model.foreign import read_json_object
from serve.hardware.machine import format_bytes
from serve.models.reference import ModelReference

CHUNK = 1 << 20
TRIES = 5
"""Failures in a row, with less than a `CHUNK` between them, after which it gives up."""
SLOW = (60.0, 1 << 14)
"""In so many seconds fewer bytes than these are a failure."""
MOST_BYTES = 1 << 44
"""No file of a model is larger."""
Progress = Callable[[str, int, int], None]
"""(file name, bytes there, bytes in all), called often."""


@dataclass(frozen=True)
class HubFile:
    """One file on the hub, pinned to a commit."""

    repo: str
    asked: str | None
    """The branch, tag or commit that was asked for."""
    revision: str
    """The commit it stood at, so that what is resumed is what was begun."""
    file: str
    url: str
    size: int
    sha256: str


def models_folder() -> Path:
    """Where pulled models live, as `org/repo/file.gguf`."""
    return paths.data_dir() / "models"


def pull_model(reference: ModelReference, progress: Progress) -> Path:
    """Bring a model here and return its (first) file; what is here already is only looked up."""
    sources, headers = find_hub_files(reference)
    targets = [models_folder() / source.repo / source.file for source in sources]
    missing = [
        (source, target)
        for source, target in zip(sources, targets, strict=True)
        if not _is_here(source, target)
    ]
    _check_room(missing)
    for source, target in missing:
        download_file(source, target, headers, progress)
    return targets[0]


def find_hub_files(reference: ModelReference) -> tuple[list[HubFile], dict[str, str]]:
    """The files of a reference on the hub, and the headers to ask for them with."""
    from huggingface_hub import HfApi, errors, get_token

    api = HfApi(library_name="rig")
    try:
        info = api.model_info(reference.repo, revision=reference.revision, files_metadata=True)
    except errors.GatedRepoError:
        raise RigError(
            f"{reference.repo} wants its terms accepted: do so at {api.endpoint}/{reference.repo}, "
            "then run `hf auth login` (or set HF_TOKEN) and pull again."
        ) from None
    except errors.RevisionNotFoundError:
        raise WrongUse(f"{reference.repo} has no revision {reference.revision!r}.") from None
    except errors.RepositoryNotFoundError:
        raise RigError(
            f"{api.endpoint} has no model {reference.repo}: check the name; "
            "a private one needs `hf auth login` or HF_TOKEN."
        ) from None
    except errors.OfflineModeIsEnabled:
        raise RigError("HF_HUB_OFFLINE is set: unset it to pull a model.") from None
    except errors.HFValidationError:
        raise WrongUse(f"{reference.repo} can be no name of a model: check it.") from None
    except (KeyError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise RigError(
            f"{api.endpoint} answers what no hub does ({_short(error)[:100]}): check HF_ENDPOINT."
        ) from None
    except (httpx.HTTPError, errors.HfHubHTTPError, OSError) as error:
        raise RigError(
            f"{api.endpoint} can't be asked ({_short(error)}): try again later."
        ) from None
    siblings = {found.rfilename: found for found in info.siblings or []}
    if not _is_hash(info.sha, 40):
        raise RigError(f"{api.endpoint} names no commit of {reference.repo}: it is no hub.")
    sources = []
    for name in reference.choose_files(siblings):
        lfs, size = siblings[name].lfs, siblings[name].size
        if lfs is None or not _is_hash(lfs.sha256, 64):
            raise RigError(
                f"The hub gives no hash for {name}: it can't be checked, so rig won't pull it."
            )
        if type(size) is not int or not 0 < size < MOST_BYTES:
            raise RigError(f"The hub says that {name} has {size!r:.40} bytes: rig won't pull it.")
        url = f"{api.endpoint}/{reference.repo}/resolve/{info.sha}/{quote(name)}"
        asked = reference.revision
        sources.append(HubFile(reference.repo, asked, str(info.sha), name, url, size, lfs.sha256))
    token = get_token()
    return sources, {"Authorization": f"Bearer {token}"} if token else {}


def download_file(
    source: HubFile, target: Path, headers: dict[str, str], progress: Progress
) -> None:
    """Download one file to `target`; a part from an earlier try of the same content is gone on with."""
    import filelock

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{source.sha256[:12]}.part")
    lock = filelock.FileLock(target.with_name(f".{target.name}.lock"))
    try:
        with lock.acquire(timeout=0):
            if part.is_symlink():  # not rig's: nothing is written through it
                part.unlink()
            digest = _download(source, part, headers, progress)
            if digest != source.sha256:
                part.unlink()
                raise RigError(
                    f"{target.name} came damaged (its sha256 is not {source.sha256[:12]}...): "
                    "it was thrown away; pull it again."
                )
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(target)
            sync_folder(target.parent)
            found = asdict(source) | {"pulled": datetime.now(UTC).isoformat(timespec="seconds")}
            write_text(_record(target), json.dumps(found, indent=2) + "\n")
    except filelock.Timeout:
        raise RigError(f"Another process is pulling {target.name}: wait for it.") from None


def _download(source: HubFile, part: Path, headers: dict[str, str], progress: Progress) -> str:
    """Bring `part` to its full size and return its sha256."""
    digest, have = _digest_of(part, source, progress)
    failures, furthest = 0, have
    with httpx.Client(follow_redirects=True, timeout=30.0, headers=headers) as client:
        while have < source.size:
            why = "nothing came"
            try:
                with client.stream("GET", source.url, headers=_range(have)) as response:
                    if (
                        have and response.status_code != 206
                    ):  # the part is not wanted: from the start
                        digest, have = hashlib.sha256(), 0
                    _check(response, source, have)
                    with part.open("r+b" if have else "wb") as file:
                        file.seek(have)
                        file.truncate()
                        for piece in _pieces(response):  # as it comes: a larger piece could be lost
                            file.write(piece)
                            digest.update(piece)
                            have += len(piece)
                            progress(source.file, have, source.size)
                            if have > source.size:
                                raise RigError(
                                    f"{source.url} sends more than it said: pull it again."
                                )
            except httpx.TransportError as error:
                why = _short(error)
            except (httpx.HTTPError, httpx.InvalidURL) as error:  # redirects in a circle and such
                raise RigError(f"{source.url} leads nowhere ({_short(error)}).") from None
            if have >= source.size:
                break
            failures = 0 if have >= min(source.size, furthest + CHUNK) else failures + 1
            furthest = max(furthest, have)
            if failures >= TRIES:
                raise RigError(
                    f"The connection broke off at {have:,} of {source.size:,} bytes ({why}), "
                    f"{TRIES} times without getting on: run the same command again to go on from there."
                ) from None
            time.sleep(min(0.2 * 2**failures, 5))
    return str(digest.hexdigest())


def _pieces(response: httpx.Response) -> Iterator[bytes]:
    """What comes, as long as enough of it comes."""
    began, came = time.monotonic(), 0
    for piece in response.iter_raw():
        came += len(piece)
        yield piece
        if (now := time.monotonic()) - began > SLOW[0]:
            if came < SLOW[1]:
                raise httpx.ReadTimeout(f"{came:,} bytes in {now - began:.0f} s")
            began, came = now, 0


def _digest_of(part: Path, source: HubFile, progress: Progress) -> tuple[Any, int]:
    """The hash of what an earlier try left, and its size; what can't be part of the file is dropped."""
    digest, have = hashlib.sha256(), 0
    if part.exists() and part.stat().st_size > source.size:
        part.unlink()
    if part.exists():
        with part.open("rb") as file:
            while piece := file.read(CHUNK):
                digest.update(piece)
                have += len(piece)
                progress(source.file, have, source.size)
    return digest, have


def _range(have: int) -> dict[str, str]:
    # identity: a compressed answer has other bytes than the file, and no place to go on at
    return {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})


def _check(response: httpx.Response, source: HubFile, have: int) -> None:
    """Refuse an answer that can't be the rest of the file."""
    if response.status_code >= 500:
        raise httpx.RemoteProtocolError(f"the hub answered {response.status_code}")  # tried again
    if response.status_code not in (200, 206):
        raise RigError(f"{source.url} answered {response.status_code}: pull it again later.")
    if (packed := response.headers.get("content-encoding", "identity")) != "identity":
        raise RigError(
            f"{source.url} is sent packed ({packed[:20]!r}), which has other bytes than the file: a proxy "
            f"between here and the hub does that; pull it past the proxy."
        )
    place = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    if response.status_code == 206 and place and int(place[1]) != have:
        raise RigError(f"{source.url} sends another part than it was asked for: pull it again.")


def _check_room(missing: list[tuple[HubFile, Path]]) -> None:
    need = sum(source.size for source, _ in missing)
    for source, target in missing:
        part = target.with_name(f".{target.name}.{source.sha256[:12]}.part")
        need -= part.stat().st_size if part.exists() else 0
    place = models_folder()
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if need > free:
        raise RigError(
            f"{format_bytes(need)} are still to come, "
            f"and {format_bytes(free)} are free in {place}: make room first."
        )


def read_record(target: Path) -> dict[str, Any]:
    """What is known of a pulled file (the fields of `HubFile`, and when); empty if nothing is."""
    path = _record(target)
    try:
        return read_json_object(path) if path.is_file() else {}
    except RigError:  # as if it had not been pulled: its hash is asked for anew
        return {}


def _is_here(source: HubFile, target: Path) -> bool:
    here = target.is_file() and target.stat().st_size == source.size
    return here and read_record(target).get("sha256") == source.sha256


def _record(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _is_hash(found: object, digits: int) -> bool:
    return isinstance(found, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", found) is not None


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".: ")
