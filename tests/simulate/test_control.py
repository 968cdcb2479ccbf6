"""What the simulator says about a run, and how its faults are changed while it runs."""

import asyncio

import pytest


@pytest.fixture
def stats(http):
    async def get(server):
        return (await http.get(f"{server.origin}/simulate/stats")).json()

    return get


async def test_stats_add_up(start, http, chat, stats):
    server = await start(requests_per_minute=60, burst_seconds=3)
    server.set_script(["ok", "503", "ok"])
    for content in ("one", "two", "one", "three"):
        await http.post(f"{server.url}/chat/completions", json=chat(content))
    found = await stats(server)
    assert found["requests"] == 4
    assert found["answered"] == {"200": 2, "429": 1, "503": 1}
    assert found["faults"] == {"503": 1}
    assert found["accepted"] == sum(count for _, count in found["per_second"]) == 3
    assert (found["duplicates"], found["distinct_bodies_answered"]) == (1, 1)
    assert found["tokens"]["total"] == found["tokens"]["prompt"] + found["tokens"]["completion"] > 0
    assert found["by_model"] == {"test/plain": 3}
    assert found["by_path"] == {"/v1/chat/completions": 4}
    assert (found["in_flight"], found["peak_in_flight"], found["client_gone"]) == (0, 1, 0)


async def test_the_peak_is_what_was_held_at_once(start, http, chat, stats):
    server = await start(latency_seconds=(0.2, 0.2))
    calls = [http.post(f"{server.url}/chat/completions", json=chat(str(number))) for number in range(40)]
    assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}
    found = await stats(server)
    assert (found["peak_in_flight"], found["in_flight"]) == (40, 0)


async def test_who_goes_away_is_counted(start, http, chat, stats, until):
    server = await start(latency_seconds=(60, 60))
    call = asyncio.create_task(http.post(f"{server.url}/chat/completions", json=chat()))
    await until(lambda: server.stats.in_flight == 1)
    call.cancel()
    await until(lambda: server.stats.client_gone == 1)
    found = await stats(server)
    assert (found["in_flight"], found["answered"], found["distinct_bodies_answered"]) == (0, {}, 0)


async def test_faults_change_while_it_runs(start, http, chat):
    server = await start()
    url, control = f"{server.url}/chat/completions", f"{server.origin}/simulate"
    assert (await http.post(url, json=chat())).status_code == 200
    changed = await http.post(f"{control}/faults", json={"502": 100})
    assert changed.json() == {"faults": {"502": 100.0}, "script_left": 0}
    assert (await http.post(url, json=chat())).status_code == 502
    scripted = await http.post(f"{control}/script", json=["429", 503, "ok"])
    assert scripted.json()["script_left"] == 3
    assert [(await http.post(url, json=chat())).status_code for _ in range(4)] == [429, 503, 200, 502]
    assert (await http.post(f"{control}/faults", json={})).json()["faults"] == {}
    assert (await http.post(url, json=chat())).status_code == 200
    assert (await http.get(f"{control}/faults")).json() == {"faults": {}, "script_left": 0}


async def test_reset_starts_the_count_over(start, http, chat, stats):
    server = await start(requests_per_minute=1, faults={"418": 0})
    for _ in range(2):
        await http.post(f"{server.url}/chat/completions", json=chat())
    server.set_script(["500"])
    cleared = (await http.post(f"{server.origin}/simulate/reset")).json()
    assert cleared == await stats(server)
    assert (cleared["requests"], cleared["answered"], cleared["per_second"]) == (0, {}, [])
    # Limits and script too: the next call passes, as the first one did.
    assert (await http.post(f"{server.url}/chat/completions", json=chat())).status_code == 200
    assert server.stats.duplicates == 0


async def test_reset_keeps_what_is_still_held(start, http, chat, until):
    server = await start(latency_seconds=(60, 60))
    call = asyncio.create_task(http.post(f"{server.url}/chat/completions", json=chat()))
    await until(lambda: server.stats.in_flight == 1)
    server.reset()
    assert (server.stats.in_flight, server.stats.peak_in_flight) == (1, 1)
    call.cancel()
    await until(lambda: server.stats.in_flight == 0)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("faults", b"[]", "object"),
        ("faults", b"{", "JSON"),
        ("faults", b'{"boom": 1}', "unknown fault"),
        ("faults", b'{"503": "x"}', "0 to 100"),
        ("faults", b'{"503": 60, "500": 60}', "add up"),
        ("script", b"{}", "list"),
        ("script", b'["boom"]', "unknown fault"),
        ("script", b"[true]", "unknown fault"),
    ],
)
async def test_what_cannot_be_set_is_refused(start, http, path, body, says):
    server = await start(faults={"503": 1})
    answer = await http.post(f"{server.origin}/simulate/{path}", content=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
    assert (await http.get(f"{server.origin}/simulate/faults")).json() == {"faults": {"503": 1.0}, "script_left": 0}


async def test_unknown_controls_are_not_there(start, http):
    server = await start()
    assert (await http.get(f"{server.origin}/simulate/else")).status_code == 404
    assert (await http.get(f"{server.origin}/simulate/reset")).status_code == 404
