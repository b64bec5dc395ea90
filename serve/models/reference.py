"""Names of models on a hub: `org/repo:QUANT`, `org/repo`, or `org/repo/file.gguf`, each with `@revision`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from rig.errors import WrongUse
from rig.model.gguf import FILE_TYPES

FORM = re.compile(
    r"(?P<repo>\w[\w.-]*/[\w-][\w.-]*?)"
    r"(?:/(?:(?:resolve|blob|raw|tree)/(?P<branch>refs/(?:pr|convert)/[\w.-]+|[^/\0-\x1f]+)(?:/|$))?"
    r"(?P<file>[^@:\0-\x1f]+\.gguf|(?<=/)[\w./ -]*)?)?"
    r"(?::(?P<quant>[\w-]+))?"
    r"(?:@(?P<revision>[\w./-]+))?"
)
HOST = re.compile(
    r"(?:https?://(?P<host>[^/]+)/|(?P<bare>(?:www\.)?(?:huggingface\.co|hf\.co))/|hf:(?://)?)"
)
HUBS = ("huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co", "hf-mirror.com")
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
USUAL = "Q4_K_M"
MOST_NAME = 200
"""Bytes of a name: what is written beside the file has longer ones."""


@dataclass(frozen=True)
class ModelReference:
    """One model on a hub."""

    repo: str
    quant: str | None = None
    """As its files are named, in any case: Q4_K_M, UD-Q4_K_XL."""
    file: str | None = None
    """One file, or a folder where it ends in a slash."""
    revision: str | None = None
    """Branch, tag or commit; None is the main branch."""

    def __str__(self) -> str:
        name = f"{self.repo}/{self.file}" if self.file else self.repo
        quant = f":{self.quant}" if self.quant else ""
        return name + quant + (f"@{self.revision}" if self.revision else "")

    def choose_files(self, names: Iterable[str]) -> list[str]:
        """The files to load, in order; more than one where a model is split into parts.

        >>> ModelReference("o/r", quant="q8_0").choose_files(["m-Q4_K_M.gguf", "m-Q8_0.gguf", "README.md"])
        ['m-Q8_0.gguf']
        >>> ModelReference("o/r").choose_files(["m-00002-of-00002.gguf", "m-00001-of-00002.gguf"])
        ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
        """
        models = _models(names)
        if not models:
            raise WrongUse(
                f"{self.repo} has no GGUF file: rig serves GGUF files only (look for {self._gguf_repo()})."
            )
        if self.file and self.file.endswith("/"):
            inside = {
                whole: parts for whole, parts in models.items() if whole.startswith(self.file)
            }
            wanted = [p for w, p in inside.items() if self.quant and _is(self.quant, w)]
            found = wanted if self.quant else list(inside.values())
        elif self.file:
            found = [parts for parts in models.values() if self.file in parts]
        elif self.quant:
            found = [parts for whole, parts in models.items() if _is(self.quant, whole)]
        elif len(models) == 1:
            found = list(models.values())
        else:
            found = [parts for whole, parts in models.items() if _is(USUAL, whole)]
        if len(found) == 1:
            return found[0]
        listed = ", ".join(sorted({quant_of(whole) or whole for whole in models}))
        if found:
            names = ", ".join(sorted(parts[0] for parts in found))
            raise WrongUse(f"{self} means several files: name one, {self.repo}/FILE.gguf: {names}.")
        if self.quant or self.file:
            raise WrongUse(f"{self.repo} has no {self.file or self.quant}; there are: {listed}.")
        raise WrongUse(f"Say which of {self.repo}: {self.repo}:QUANT; there are: {listed}.")

    def _gguf_repo(self) -> str:
        return f"a repository such as {self.repo}-GGUF"


def parse_reference(text: str) -> ModelReference | None:
    """A reference, or None where `text` does not look like one.

    >>> parse_reference("bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M")
    ModelReference(repo='bartowski/Llama-3.2-1B-Instruct-GGUF', quant='Q4_K_M', file=None, revision=None)
    >>> parse_reference("https://huggingface.co/o/r/resolve/main/sub/m.gguf").file
    'sub/m.gguf'
    >>> [parse_reference(text) for text in ("model.gguf", "./o/r", "/o/r", "C:/x")]
    [None, None, None, None]
    """
    link = HOST.match(text)
    rest = text[link.end() :] if link else text
    if link:  # what a browser shows beside the address: ?download=true, #files, %20
        rest = unquote(re.split(r"[?#]", rest)[0]).rstrip("/")
    match = FORM.fullmatch(rest)
    if match is None:
        return None
    repo, branch, file, quant, revision = match.groups()
    if link and link["host"] and link["host"].lower() not in (*HUBS, _endpoint_host()):
        raise WrongUse(
            f"{link['host']} is not the hub that rig asks ({_endpoint_host()}): set HF_ENDPOINT to pull "
            f"from another one."
        )
    if branch and revision and branch != revision:
        raise WrongUse(f"{text} names two branches, {branch} and {revision}: keep one.")
    asked = revision or branch
    if file and not file.endswith(".gguf"):  # a folder of a tree
        file = file.rstrip("/") + "/" if branch else file
        if not branch:
            return None
    if not _is_inside(file or "") or not _is_inside(asked or "") or ".." in (asked or ""):
        return None
    return ModelReference(repo, quant, file or None, None if asked == "main" else asked)


def _endpoint_host() -> str:
    """The hub that huggingface_hub asks, without importing it."""
    return urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").netloc.lower()


def quant_of(name: str) -> str | None:
    """The quantisation that a file's name tells.

    >>> quant_of("m-IQ4_XS.gguf"), quant_of("m.q8_0.gguf"), quant_of("m-UD-Q4_K_XL.gguf"), quant_of("m.gguf")
    ('IQ4_XS', 'Q8_0', 'UD-Q4_K_XL', None)
    """
    known = "|".join(sorted(FILE_TYPES.values(), key=len, reverse=True))
    stem = SPLIT.sub("", name)
    match = re.search(rf"(?:^|[-._/])((?:UD-)?(?:{known}|I?Q\d_\w+))\.gguf$", stem, re.IGNORECASE)
    return match[1].upper() if match else None


def _models(names: Iterable[str]) -> dict[str, list[str]]:
    """Files by the name of the whole; vision projectors and importance matrices are no models."""
    found: dict[str, list[str]] = {}
    for name in sorted(name for name in names if isinstance(name, str) and _is_inside(name)):
        last = name.rpartition("/")[2].lower()
        if last.endswith(".gguf") and not last.startswith(("mmproj", "imatrix")):
            found.setdefault(SPLIT.sub("", name), []).append(name)
    return found


def _is_inside(name: str) -> bool:
    """Whether a file of that name stays in the folder it is put in, and can be one everywhere."""
    parts = name.removesuffix("/").split("/")
    return not name or (
        name.isprintable()
        and not set(name) & set('\\:*?"<>|')
        and all(p not in ("", ".", "..") and len(p.encode()) <= MOST_NAME for p in parts)
        and len(name) <= 1000
    )


def _is(quant: str, whole: str) -> bool:
    own = quant_of(whole)
    if own is not None:
        return own == quant.upper()
    return bool(re.search(rf"(?:^|[-._/]){re.escape(quant)}\.gguf$", whole, re.IGNORECASE))
