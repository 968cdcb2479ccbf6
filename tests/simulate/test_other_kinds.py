"""embeddings, rerank, images and models on the wire."""

import array
import base64
import math
import struct
import zlib

import pytest


@pytest.fixture
async def ask(start, http):
    server = await start()

    async def post(path, **body):
        answer = await http.post(f"{server.url}{path}", json={"model": "m"} | body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    post.server = server
    return post


def png_size(content: bytes) -> tuple[int, int]:
    """Its size, after every chunk's checksum and the number of its pixels were looked at."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    at, size, pixels = 8, (0, 0), b""
    while at < len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        chunk = content[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", content, at + 8 + length)[0] == zlib.crc32(kind + chunk)
        if kind == b"IHDR":
            size = struct.unpack_from(">II", chunk)
        if kind == b"IDAT":
            pixels += chunk
        at += 12 + length
    assert kind == b"IEND"
    assert len(zlib.decompress(pixels)) == size[1] * (1 + (size[0] + 7) // 8)
    return size


async def test_embeddings_are_unit_vectors_of_their_texts(ask):
    answer = await ask("/embeddings", input=["mill", "stable", "mill"])
    vectors = [entry["embedding"] for entry in answer["data"]]
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    assert all(len(vector) == 768 and math.hypot(*vector) == pytest.approx(1) for vector in vectors)
    assert vectors[0] == vectors[2] != vectors[1]
    alone = await ask("/embeddings", input="mill")
    assert alone["data"][0]["embedding"] == vectors[0]
    assert alone["usage"] == {"prompt_tokens": 1, "total_tokens": 1}


async def test_embeddings_as_base64_are_the_same_numbers(ask):
    plain = await ask("/embeddings", input="mill", dimensions=16)
    packed = await ask("/embeddings", input="mill", dimensions=16, encoding_format="base64")
    numbers = array.array("f", base64.b64decode(packed["data"][0]["embedding"]))
    assert list(numbers) == pytest.approx(plain["data"][0]["embedding"], abs=1e-6)
    assert len(numbers) == 16


async def test_embeddings_of_tokens(ask):
    assert len((await ask("/embeddings", input=[1, 2, 3]))["data"]) == 1
    assert len((await ask("/embeddings", input=[[1, 2], [3]]))["data"]) == 2


DOCUMENTS = ["The stable is old.", "A mill stands by the river.", {"title": "River", "text": "mill and river"}, "None."]


async def test_rerank_puts_what_shares_words_first(ask):
    answer = await ask("/rerank", query="river mill", documents=DOCUMENTS, return_documents=True)
    assert answer["object"] == "rerank"
    assert [result["index"] for result in answer["results"]] == [2, 1, 0, 3]
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] <= scores[0] <= 1
    assert answer["results"][0]["document"] == {"text": "River\nmill and river"}


async def test_rerank_of_the_best_and_by_fields(ask):
    answer = await ask("/rerank", query="river", documents=DOCUMENTS[2:], top_n=1, rank_fields=["text"])
    assert [(result["index"], result["document"]) for result in answer["results"]] == [(0, {})]


async def test_images_have_the_asked_size(ask):
    answer = await ask("/images/generations", prompt="A mill", n=2, width=200, height=101, response_format="base64")
    pictures = [base64.b64decode(entry["b64_json"]) for entry in answer["data"]]
    assert [png_size(picture) for picture in pictures] == [(200, 101)] * 2
    assert pictures[0] != pictures[1]
    assert [(entry["index"], entry["type"]) for entry in answer["data"]] == [(0, "b64_json"), (1, "b64_json")]
    assert all(len(picture) < 5000 for picture in pictures)


async def test_images_behind_urls_can_be_fetched(ask, http):
    answer = await ask("/images/generations", prompt="A mill", size="64x32")
    entry = answer["data"][0]
    assert entry["type"] == "url"
    assert entry["url"].startswith(f"{ask.server.url}/simulated-files/")
    picture = await http.get(entry["url"])
    assert picture.headers["content-type"] == "image/png"
    assert png_size(picture.content) == (64, 32)
    assert (await http.get(entry["url"].replace("64x32", "9999x1"))).status_code == 404
    assert (await http.get(f"{ask.server.url}/simulated-files/../../etc/passwd")).status_code == 404


async def test_a_megapixel_is_small(ask):
    answer = await ask("/images/generations", prompt="A mill", response_format="b64_json")
    picture = base64.b64decode(answer["data"][0]["b64_json"])
    assert png_size(picture) == (1024, 1024)
    assert len(picture) < 20_000


async def test_models_in_both_shapes(start, http):
    server = await start(models=("MiniMaxAI/*", "own/model"))
    answer = (await http.get(f"{server.url}/models")).json()
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == ["MiniMaxAI/MiniMax-M1-40k", "own/model"]
    together = await http.get(f"{server.url}/models", headers={"user-agent": "Together/Python 3.1.1"})
    assert together.json() == answer["data"]
    one = await http.get(f"{server.url}/models/own/model")
    assert one.json()["id"] == "own/model"
    assert (await http.get(f"{server.url}/models/other")).status_code == 404
