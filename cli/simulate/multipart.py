"""multipart/form-data, as far as audio uploads need it: small text fields and files that fit in memory."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cli.simulate.reply import Refusal

_BOUNDARY = re.compile(r'boundary=(?:"([^"]+)"|([^\s;]+))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition:\s*form-data\s*(;.*)$", re.IGNORECASE | re.MULTILINE)
_PARAMETER = re.compile(rb';\s*(name|filename\*?)=(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Upload:
    filename: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Form:
    fields: tuple[tuple[str, str], ...]
    files: Mapping[str, Upload]

    def canonical_bytes(self) -> bytes:
        """The same bytes for the same form, whatever boundary it came with."""
        pieces = [f"{len(name)}:{name}={len(value)}:{value};".encode() for name, value in sorted(self.fields)]
        for name, upload in sorted(self.files.items()):
            pieces.append(f"{name}@{len(upload.content)}:".encode())
            pieces.append(upload.content)
        return b"".join(pieces)


def parse_multipart(content_type: str, raw: bytes) -> Form:
    boundary = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith("multipart/form-data") or boundary is None:
        message = f"Expected multipart/form-data with a boundary, but the content type is '{content_type}'."
        raise Refusal(400, message, code="invalid_content_type")
    delimiter = b"\r\n--" + (boundary[1] or boundary[2]).encode("latin-1")
    # The first delimiter may stand at the very start, without the line break that leads the others.
    preamble, *parts = (b"\r\n" + raw).split(delimiter)
    if preamble.strip() or not parts or not parts.pop().startswith(b"--"):
        raise Refusal(400, "The multipart body is malformed or incomplete.", code="invalid_multipart")
    fields: list[tuple[str, str]] = []
    files: dict[str, Upload] = {}
    for part in parts:
        head, _, content = part.partition(b"\r\n\r\n")
        name, filename = _names(head)
        if filename is None:
            fields.append((name, content.decode("utf-8", "replace")))
        else:
            files[name] = Upload(filename=filename, content=content)
    return Form(fields=tuple(fields), files=files)


def _names(head: bytes) -> tuple[str, str | None]:
    """The field's name, and the file's name when the part is one."""
    disposition = _DISPOSITION.search(head.replace(b"\r\n", b"\n"))
    found = {} if disposition is None else dict(_parameters(disposition[1]))
    if "name" not in found:
        raise Refusal(400, "A part of the multipart body has no name.", code="invalid_multipart")
    return found["name"], found.get("filename", found.get("filename*"))


def _parameters(text: bytes) -> list[tuple[str, str]]:
    return [
        (match[1].decode().lower(), (match[2] if match[2] is not None else match[3]).decode("utf-8", "replace"))
        for match in _PARAMETER.finditer(text)
    ]
