"""Lines of every form: (line, defaults, what is known of it, the body that is sent)."""

from promptmill.request import Defaults, Form
from tests.promptmill.request_lines import MODEL, PLAIN

FORMS = [
    # line, defaults, (custom_id, form, path, model), body
    (
        b'{"custom_id":"a", "method":"POST", "url":"/rerank", "body": {"model":"m", "query": "", "documents":[""]} }\n',
        PLAIN,
        ("a", Form.ENVELOPE, "/v1/rerank", "m"),
        b'{"model":"m", "query": "", "documents":[""]}',
    ),
    (  # Together's: neither method nor url
        b'{"custom_id": "a", "body": {"model": "m", "messages": [{"role": "user"}]}}',
        PLAIN,
        ("a", Form.ENVELOPE, "/v1/chat/completions", "m"),
        b'{"model": "m", "messages": [{"role": "user"}]}',
    ),
    (
        b'{"body": {"model": "m", "prompt": "a"}}',
        PLAIN,
        (None, Form.ENVELOPE, "/v1/completions", "m"),
        b'{"model": "m", "prompt": "a"}',
    ),
    (
        b'{"custom_id": "a", "body": {"model": "m", "prompt": "a cat"}}',
        Defaults(endpoint="/v1/images/generations"),
        ("a", Form.ENVELOPE, "/v1/images/generations", "m"),
        b'{"model": "m", "prompt": "a cat"}',
    ),
    (  # a url of its own wins over the default
        b'{"url": "/v1/embeddings", "body": {"model": "m", "input": "a"}}',
        Defaults(endpoint="/v1/images/generations"),
        (None, Form.ENVELOPE, "/v1/embeddings", "m"),
        b'{"model": "m", "input": "a"}',
    ),
    (
        b'{"url": "/v1/v1/audio/generations/", "method": "post", "body": {"model": "m", "input": "a", "voice": "b"}}',
        PLAIN,
        (None, Form.ENVELOPE, "/v1/audio/generations", "m"),
        b'{"model": "m", "input": "a", "voice": "b"}',
    ),
    (  # the default model goes to the front, the rest stays as it is
        b'{"custom_id": "a", "body": { "messages": [{"role": "user"}] }}',
        MODEL,
        ("a", Form.ENVELOPE, "/v1/chat/completions", "default/model"),
        b'{"model":"default/model", "messages": [{"role": "user"}] }',
    ),
    (  # null is no model
        b'{"custom_id": "a", "body": {"n": 1, "model": null, "messages": [{"role": "user"}]}}',
        MODEL,
        ("a", Form.ENVELOPE, "/v1/chat/completions", "default/model"),
        b'{"model":"default/model","n": 1, "messages": [{"role": "user"}]}',
    ),
    (  # the last of two is what everybody reads
        b'{"custom_id": "a", "custom_id": "b", "body": {}, "body": {"model": "m", "model": "o", "input": "a"}}',
        PLAIN,
        ("b", Form.ENVELOPE, "/v1/embeddings", "o"),
        b'{"model": "m", "model": "o", "input": "a"}',
    ),
    (
        b'{"model": "m", "messages": [{"role": "user"}]}',
        PLAIN,
        (None, Form.BARE, "/v1/chat/completions", "m"),
        b'{"model": "m", "messages": [{"role": "user"}]}',
    ),
    (
        b'{"custom_id": "a", "model": "m", "messages": [{"role": "user"}]}',
        PLAIN,
        ("a", Form.BARE, "/v1/chat/completions", "m"),
        b'{"model": "m", "messages": [{"role": "user"}]}',
    ),
    (
        b'{ "messages" : [{"role": "user", "custom_id": 1}] ,\t"custom_id" : "a" }',
        MODEL,
        ("a", Form.BARE, "/v1/chat/completions", "default/model"),
        b'{"model":"default/model", "messages" : [{"role": "user", "custom_id": 1}] }',
    ),
    (
        rb'{"custom_id": "a", "model": "m", "custom\u005fid": "b", "messages": [{"role": "user"}]}',
        PLAIN,
        ("b", Form.BARE, "/v1/chat/completions", "m"),
        b'{"model": "m", "messages": [{"role": "user"}]}',
    ),
    (
        b'{"custom_id": null, "model": "m", "query": "q", "documents": ["d"]}',
        PLAIN,
        (None, Form.BARE, "/v1/rerank", "m"),
        b'{"model": "m", "query": "q", "documents": ["d"]}',
    ),
    (
        b'{"model": "m", "input": "a", "voice": "b"}',
        PLAIN,
        (None, Form.BARE, "/v1/audio/speech", "m"),
        b'{"model": "m", "input": "a", "voice": "b"}',
    ),
    (
        b'{"model": "m", "input": "a"}',
        PLAIN,
        (None, Form.BARE, "/v1/embeddings", "m"),
        b'{"model": "m", "input": "a"}',
    ),
    (
        b'{"model": "m", "file": "a.mp3", "prompt": "names: Ada"}',
        PLAIN,
        (None, Form.BARE, "/v1/audio/transcriptions", "m"),
        b'{"model": "m", "file": "a.mp3", "prompt": "names: Ada"}',
    ),
    (  # not a string: not a chat message
        b'{"model": "m", "prompt": ["a", "b"]}',
        PLAIN,
        (None, Form.BARE, "/v1/completions", "m"),
        b'{"model": "m", "prompt": ["a", "b"]}',
    ),
    (
        b'{"model": "m", "prompt": "a"}',
        Defaults(endpoint="/v1/completions"),
        (None, Form.BARE, "/v1/completions", "m"),
        b'{"model": "m", "prompt": "a"}',
    ),
    (
        b'{"prompt": "a cat", "width": 512}',
        Defaults("i", "/v1/images/generations", {"steps": 4}),  # a body of the producer's stays the producer's
        (None, Form.BARE, "/v1/images/generations", "i"),
        b'{"model":"i","prompt": "a cat", "width": 512}',
    ),
    (
        b'{"prompt": "Hi \\u00e9\\n", "custom_id": "a"}',
        MODEL,
        ("a", Form.PROMPT, "/v1/chat/completions", "default/model"),
        b'{"model":"default/model","messages":[{"role":"user","content":"Hi \\u00e9\\n"}]}',
    ),
    (
        b'{"temperature" : 0.50, "prompt": "Hi", "model": "m", "stop": ["a"]}',
        Defaults("d", "/v1/chat/completions", {"temperature": 1, "top_p": 0.95}),
        (None, Form.PROMPT, "/v1/chat/completions", "m"),
        b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"temperature" : 0.50,"stop": ["a"],"top_p":0.95}',
    ),
    (  # messages and a prompt: the messages are meant
        b'{"model": "m", "prompt": "Hi", "messages": [{"role": "user"}]}',
        PLAIN,
        (None, Form.BARE, "/v1/chat/completions", "m"),
        b'{"model": "m", "prompt": "Hi", "messages": [{"role": "user"}]}',
    ),
    # Legal JSON that not every reader likes goes on as it came.
    (
        rb'{"custom_id": "a", "body": {"model": "m", "messages": [{"role": "user", "content": "\ud83d\u0000"}]}}',
        PLAIN,
        ("a", Form.ENVELOPE, "/v1/chat/completions", "m"),
        rb'{"model": "m", "messages": [{"role": "user", "content": "\ud83d\u0000"}]}',
    ),
    (
        rb'{"body": {"x": "\ufffd"}, "y": "\udc00", "body": {"input": "\ud800"}, "custom_id": "a"}',
        MODEL,
        ("a", Form.ENVELOPE, "/v1/embeddings", "default/model"),
        rb'{"model":"default/model","input": "\ud800"}',
    ),
    (
        '{"custom_id": "ä", "prompt": "ö\\ud800", "x": "\\udc00", "stop": "ü"}'.encode(),
        MODEL,
        ("ä", Form.PROMPT, "/v1/chat/completions", "default/model"),
        (
            '{"model":"default/model","messages":[{"role":"user","content":"ö\\ud800"}],"x": "\\udc00","stop": "ü"}'
        ).encode(),
    ),
    (
        '{"input": "ö\\ud800", "custom_id": "ä", "\\udc00": 123456789012345678901234567890}'.encode(),
        MODEL,
        ("ä", Form.BARE, "/v1/embeddings", "default/model"),
        '{"model":"default/model","input": "ö\\ud800", "\\udc00": 123456789012345678901234567890}'.encode(),
    ),
    (
        b'{"model": "m", "input": "a", "x": 1e999, "y": ' + b"9" * 4_000 + b"}",
        PLAIN,
        (None, Form.BARE, "/v1/embeddings", "m"),
        b'{"model": "m", "input": "a", "x": 1e999, "y": ' + b"9" * 4_000 + b"}",
    ),
    (  # as read_lines hands over the first line of a file
        b'\xef\xbb\xbf\r\n \n {"model": "m", "input": "a"} \r\n\n',
        PLAIN,
        (None, Form.BARE, "/v1/embeddings", "m"),
        b'{"model": "m", "input": "a"}',
    ),
]
