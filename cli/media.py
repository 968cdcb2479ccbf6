"""`--save-dir`: audio and pictures become files named by custom_id, and `index.jsonl` says which belong to which.

In the results themselves, a reference takes the place of what was saved, so a line stays readable and nothing is kept
twice. What is behind a URL is not fetched: the URL goes into the index.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
from msgspec import Raw

from cli.file_names import extension, safe_name, with_digest
from cli.target import target
from promptmill.errors import UsageError
from promptmill.job import State
from promptmill.kinds import lenient
from promptmill.output import is_binary, json_of, name_of
from promptmill.store.results import Result

INDEX: Final = "index.jsonl"

_JSON: Final = "application/json"
#: Vectors have `data` too, and much of it: they are not taken apart.
_MAY_HAVE_IMAGES = re.compile(rb'"(?:b64_json|url)"')


class MediaFolder:
    """A folder that takes what answers carry. A context manager: the index appears at its end.

    `files` and `urls` count what was saved and what was only noted. Raises UsageError when the folder or a file in it
    cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.files = 0
        self.urls = 0
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {folder}: {error.strerror}") from error
        self._index = target(folder / INDEX)
        #: Hashes of the names given, without case: not every file system tells `A.png` from `a.png`.
        self._given = {hash(INDEX)}

    def __enter__(self) -> Self:
        self._index.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._index.__exit__(kind, error, trace)

    def keep(self, result: Result) -> Result:
        """Save what the answer carries; returns the result with references in its place."""
        if result.state is not State.SUCCEEDED:
            return result
        if is_binary(result):
            name = self._save(result, "", result.body, result.content_type)
            self._note(result, [name], [])
            body = {"content_type": result.content_type, "file": name}
            return replace(result, body=msgspec.json.encode(body), content_type=_JSON)
        return self._keep_images(result)

    def _keep_images(self, result: Result) -> Result:
        if not _MAY_HAVE_IMAGES.search(result.body) or json_of(result) is None:
            return result
        answer = _fields(result.body)
        items = _items(answer.get("data"))
        files: list[str] = []
        urls: list[str] = []
        for index, item in enumerate(items):
            for field in ("b64_json", "url"):
                text = _text(item.get(field))
                if text is None:
                    continue
                content = _from_base64(text) if field == "b64_json" else _from_data_uri(text)
                if content is not None:
                    name = self._save(result, f"-{index}", *content)
                    files.append(name)
                    items[index] = _with_file(item, field, name)
                    break
                if field == "url":
                    urls.append(text)
        if not files and not urls:
            return result
        self._note(result, files, urls)
        if not files:
            return result
        answer["data"] = Raw(msgspec.json.encode(items))
        return replace(result, body=msgspec.json.encode(answer))

    def _save(self, result: Result, suffix: str, content: bytes, content_type: str) -> str:
        custom_id, ending = name_of(result), extension(content, content_type)
        name = safe_name(custom_id) + suffix + ending
        if hash(name.casefold()) in self._given:
            name = with_digest(safe_name(custom_id), custom_id) + suffix + ending
        self._given.add(hash(name.casefold()))
        with target(self._folder / name, durable=False) as file:
            file.write(content)
        self.files += 1
        return name

    def _note(self, result: Result, files: Sequence[str], urls: Sequence[str]) -> None:
        self.urls += len(urls)
        entry = {"custom_id": name_of(result), "files": files, "urls": urls}
        self._index.write(msgspec.json.encode(entry) + b"\n")


# Members that are not looked at stay as they were written: Raw is written as it was read.
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_LIST = msgspec.json.Decoder(list[dict[str, Raw]])
_STRING = msgspec.json.Decoder(str)
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _fields(body: bytes) -> dict[str, Raw]:
    try:
        return lenient.decode(_OBJECT, body)
    except _UNREADABLE:
        return {}


def _items(data: Raw | None) -> list[dict[str, Raw]]:
    """The objects of an answer's `data`; none where it is something else."""
    try:
        return [] if data is None else _LIST.decode(data)
    except _UNREADABLE:
        return []


def _text(value: Raw | None) -> str | None:
    try:
        return None if value is None else _STRING.decode(value) or None
    except _UNREADABLE:
        return None


def _with_file(item: dict[str, Raw], field: str, name: str) -> dict[str, Raw]:
    reference = Raw(msgspec.json.encode(name))
    return {("file" if key == field else key): (reference if key == field else value) for key, value in item.items()}


_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[^,;]*)*;base64,", re.IGNORECASE)


def _from_base64(text: str, content_type: str = "") -> tuple[bytes, str] | None:
    try:
        return base64.b64decode(text, validate=True), content_type
    except (binascii.Error, ValueError):
        return None


def _from_data_uri(text: str) -> tuple[bytes, str] | None:
    found = _DATA_URI.match(text)
    return _from_base64(text[found.end() :], found[1] or "") if found else None
