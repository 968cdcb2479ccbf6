"""rerank: documents by the share of the query's words that they hold, which is enough to have a right order."""

import re
from collections.abc import Mapping
from typing import Any

from cli.simulate import checks
from cli.simulate.call import Call
from cli.simulate.grain import tokens_of
from cli.simulate.reply import Reply, Usage

_WORD = re.compile(r"\w+")
_MOST_DOCUMENTS = 10_000


def answer(call: Call) -> Reply:
    body = call.body
    query = checks.text(body, "query")
    documents = body.get("documents")
    if documents is None:
        raise checks.missing("documents")
    if not isinstance(documents, list):
        raise checks.wrong_type("documents", "an array of strings or objects", documents)
    if not 1 <= len(documents) <= _MOST_DOCUMENTS:
        raise checks.wrong_value("documents", f"it must hold 1 to {_MOST_DOCUMENTS} documents.")
    most = checks.integer(body, "top_n", low=1, high=_MOST_DOCUMENTS)
    shows = checks.flag(body, "return_documents")
    texts = [_text(document, at, body.get("rank_fields")) for at, document in enumerate(documents)]
    scores = [relevance(query, text) for text in texts]
    ranked = sorted(range(len(texts)), key=lambda at: -scores[at])[:most]
    results = [
        {"index": at, "relevance_score": scores[at], "document": {"text": texts[at]} if shows else {}} for at in ranked
    ]
    usage = Usage(sum(tokens_of(len(text) + len(query)) for text in texts))
    content = {"id": call.hex_id, "object": "rerank", "model": call.model, "results": results, "usage": _counts(usage)}
    return Reply.of_json(content, usage=usage)


def relevance(query: str, text: str) -> float:
    """From 0 to 1: mostly the share of the query's words that occur, a little how much of the text they are."""
    wanted, found = set(_WORD.findall(query.lower())), set(_WORD.findall(text.lower()))
    shared = len(wanted & found)
    if not shared:
        return 0.0
    return round(0.9 * shared / len(wanted) + 0.1 * shared / len(found), 6)


def _text(document: object, at: int, rank_fields: object) -> str:
    if isinstance(document, str):
        return document
    if not isinstance(document, Mapping):
        raise checks.wrong_type(f"documents[{at}]", "a string or an object", document)
    fields = rank_fields if isinstance(rank_fields, list) else list(document)
    return "\n".join(str(document[field]) for field in fields if field in document)


def _counts(usage: Usage) -> dict[str, Any]:
    return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": 0, "total_tokens": usage.total_tokens}
