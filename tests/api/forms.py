"""Forms as clients send them, and as they should not."""

import json

BOUNDARY = "----form-of-a-test"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def line(custom_id: str | None = None, **body) -> bytes:
    """One request of a batch, as OpenAI's clients write it."""
    made = {
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **body},
    }
    return json.dumps({} if custom_id is None else {"custom_id": custom_id}).encode()[:-1] + (
        (b"," if custom_id is not None else b"") + json.dumps(made).encode()[1:] + b"\n"
    )


def lines(count: int) -> bytes:
    return b"".join(line(f"r-{number}") for number in range(count))


def field(name: str, value: str | bytes) -> bytes:
    return part(f'form-data; name="{name}"', value)


def file_field(content: bytes, filename: str = "in.jsonl", name: str = "file") -> bytes:
    return part(f'form-data; name="{name}"; filename="{filename}"', content)


def part(disposition: str, value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
