"""Opens the ZIP archives that EPUB and DOCX are: members by name, never unpacked to disk, never a bomb."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any

from bots.documents.article import Unreadable

MAX_MEMBER = 20_000_000
MAX_TOTAL = 60_000_000
"""Bytes after decompression, of one member and of all that are read."""


class DocumentArchive:
    """The members of one archive, counted as they are read."""

    def __init__(self, content: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(content))
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise _damaged(error) from error
        self._left = MAX_TOTAL

    def read_member(self, name: str) -> bytes:
        """The whole member `name`; raises `Unreadable` when it is absent, damaged, locked or swollen."""
        try:
            info = self._zip.getinfo(name)
            if info.flag_bits & 1:
                raise Unreadable(
                    "password", "The document asks for a password: save a copy without."
                )
            with self._zip.open(info) as member:
                content = member.read(min(MAX_MEMBER, self._left) + 1)
        except KeyError as error:
            raise _damaged(error) from error
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError) as error:
            raise _damaged(error) from error
        except NotImplementedError as error:
            raise Unreadable(
                "kind", f"The document is packed in an unusual way ({error})."
            ) from error
        self._left -= len(content)
        if len(content) > MAX_MEMBER or self._left < 0:
            raise Unreadable("size", "The document unfolds to more than can be read.")
        return content

    def read_xml(self, name: str) -> Any:
        """The member `name` as an lxml element; entities and addresses in it lead nowhere."""
        from lxml import etree

        parser = etree.XMLParser(
            resolve_entities=False, no_network=True, load_dtd=False, recover=True, huge_tree=False
        )
        root = etree.fromstring(self.read_member(name), parser)
        if root is None:
            raise Unreadable("damaged", f"The document is damaged ({name} holds no XML).")
        return root


def _damaged(error: Exception) -> Unreadable:
    return Unreadable("damaged", f"The document is damaged and can't be read ({error}).")
