"""GET /v1/models: what is on offer, in the shape that the asking SDK reads."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from cli.simulate.call import Dialect
from cli.simulate.reply import Reply

#: One well-known name or two for each kind. Unless models are restricted, any other name is served as well.
CATALOGUE = (
    ("MiniMaxAI/MiniMax-M1-40k", "chat"),
    ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "chat"),
    ("gpt-4o-mini", "chat"),
    ("meta-llama/Llama-Guard-4-12B", "moderation"),
    ("BAAI/bge-base-en-v1.5", "embedding"),
    ("text-embedding-3-small", "embedding"),
    ("Salesforce/Llama-Rank-V1", "rerank"),
    ("black-forest-labs/FLUX.1-schnell", "image"),
    ("cartesia/sonic", "audio"),
    ("openai/whisper-large-v3", "transcribe"),
)
_CREATED = 1_750_000_000
_WILDCARDS = "*?["


def listing(dialect: Dialect, globs: Sequence[str] | None) -> Reply:
    """Together answers with a bare array, OpenAI with an object around it."""
    offered = [_entry(name, kind) for name, kind in _offered(globs)]
    return Reply.of_json(offered if dialect == "together" else {"object": "list", "data": offered})


def one(name: str) -> Reply:
    return Reply.of_json(_entry(name, dict(CATALOGUE).get(name, "chat")))


def _offered(globs: Sequence[str] | None) -> list[tuple[str, str]]:
    """The catalogue's names that the globs let through, and those that a glob without wildcards spells out."""
    if globs is None:
        return list(CATALOGUE)
    found = {name: kind for name, kind in CATALOGUE if any(fnmatchcase(name, glob) for glob in globs)}
    for glob in globs:
        if not any(wildcard in glob for wildcard in _WILDCARDS):
            found.setdefault(glob, "chat")
    return list(found.items())


def _entry(name: str, kind: str) -> dict[str, Any]:
    owner = name.partition("/")[0] if "/" in name else "openai"
    entry = {"id": name, "object": "model", "created": _CREATED, "owned_by": owner}
    return {**entry, "type": kind, "display_name": name.rpartition("/")[2], "organization": owner}
