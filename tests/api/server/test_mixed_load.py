"""Requests of every kind at once, some of whose clients leave: each answer is the one of the same request alone."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.api.server.conftest import NAME, ServeProcess, Start, until

ADMIN = "admin-key"
KEYS = ("acme-key", "bolt-key")
COUNT = 60
AT_ONCE = 24


def arguments(number: int, rng: random.Random) -> dict[str, Any]:
    """A chat or completion that is repeatable, whatever is beside it."""
    shared = "A system prompt that many of these share, word for word. " * rng.randrange(3)
    found: dict[str, Any] = {
        "model": NAME,
        "max_tokens": rng.randrange(1, 40),
        "seed": number,
        "temperature": rng.choice([0, 0.7, 1.3]),
        "n": rng.choice([1, 1, 2]),
    }
    if rng.random() < 0.3:
        found["stop"] = [rng.choice("aeiou"), "the"]
    if rng.random() < 0.3:
        found["presence_penalty"], found["frequency_penalty"] = 1.0, 0.5
    if rng.random() < 0.3:
        found["extra_body"] = {"repetition_penalty": 1.3, "top_k": 30}
    text = f"{shared}Request {number % 7}: " + "x" * rng.randrange(40)
    if rng.random() < 0.5:
        return {**found, "prompt": text}
    return {**found, "messages": [{"role": "user", "content": text}]}


async def answer(client: Any, wanted: dict[str, Any], *, is_streamed: bool, leaves: bool) -> list[str]:
    """Texts of a request's choices; an empty list where its client leaves before the end."""
    api = client.chat.completions if "messages" in wanted else client.completions
    if not is_streamed:
        reply = await api.create(**wanted)
        if "messages" in wanted:
            return [choice.message.content for choice in reply.choices]
        return [choice.text for choice in reply.choices]
    said = [""] * wanted["n"]
    stream = await api.create(**wanted, stream=True)
    seen = 0
    async for chunk in stream:
        seen += 1
        if leaves and seen > 3:
            await stream.close()
            return []
        for choice in chunk.choices:
            piece = choice.delta.content if "messages" in wanted else choice.text
            said[choice.index] += piece or ""
    return said


async def all_at_once(
    server: ServeProcess, jobs: list[dict[str, Any]], rng: random.Random
) -> list[list[str]]:
    seats = asyncio.Semaphore(AT_ONCE)
    clients = [server.async_client(key) for key in KEYS]

    async def one(number: int) -> list[str]:
        streamed, leaves = rng.random() < 0.6, rng.random() < 0.2
        async with seats:
            return await answer(
                clients[number % len(KEYS)], jobs[number], is_streamed=streamed, leaves=leaves
            )

    found = await asyncio.gather(*(one(number) for number in range(len(jobs))))
    for client in clients:
        await client.close()
    return list(found)


def test_answers_are_those_of_each_request_alone(tenant_server: ServeProcess) -> None:
    rng = random.Random(4)
    jobs = [arguments(number, rng) for number in range(COUNT)]

    async def alone() -> list[list[str]]:
        async with tenant_server.async_client(KEYS[0]) as client:
            found = []
            for number, checked in enumerate(jobs):
                # Nothing cached helps, and nothing runs beside it.
                salted = {**checked.get("extra_body", {}), "cache_salt": f"alone {number}"}
                found.append(
                    await answer(client, {**checked, "extra_body": salted}, is_streamed=False, leaves=False)
                )
            return found

    wanted = asyncio.run(alone())
    for _ in range(2):
        found = asyncio.run(all_at_once(tenant_server, jobs, rng))
        kept = [number for number in range(COUNT) if found[number]]
        assert len(kept) > COUNT // 2
        assert [found[number] for number in kept] == [wanted[number] for number in kept]
    until(lambda: tenant_server.metric("kvtrie_num_requests_running", ADMIN) == 0)
    until(lambda: tenant_server.metric("kvtrie_pool_pending_bytes", ADMIN) == 0)
    used, free, capacity = (
        tenant_server.metric(f"kvtrie_pool_{kind}_bytes", ADMIN) for kind in ("used", "free", "capacity")
    )
    assert used + free == capacity


@pytest.mark.parametrize("option", ["--store", "--sidecar"])
def test_a_server_finds_what_another_one_left_in_the_tier_below(
    start_server: Start, start_sidecar: Any, request: pytest.FixtureRequest, option: str
) -> None:
    if option == "--store":
        url = request.getfixturevalue("redis_server").url
    else:
        url = start_sidecar(memory="8MiB", chunk_tokens=8).url
    prompt = list(range(10, 10 + 64))
    counts = []
    for _ in range(2):
        server = start_server(option, url)
        reply = server.client().completions.create(model=NAME, prompt=prompt, max_tokens=1)
        counts.append(reply.usage.prompt_tokens_details.cached_tokens)
        # Ended in order: what was offered to the tier is written.
        server.process.terminate()
        assert server.ended() == 0
    # Of a prompt of whole chunks the last one is computed for its last token.
    assert counts[0] == 0 and counts[1] >= 64 - 8
