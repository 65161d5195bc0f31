"""Keys: what each may use, whose session a resume token opens, and who may see what runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from service.auth import Tokens
from service.config import Limits
from service.server import Server
from service.throttle import Throttle
from tests.serving import connected, get, in_loop, kinds, metric, serving


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text("alpha\nbeta\n")
    return file


async def refusal(server: Server, query: str) -> Any:
    """How a handshake is refused."""
    with pytest.raises(InvalidStatus) as refused:
        async with connected(server, query):
            pass
    return refused.value.response


def test_a_key_is_named_without_giving_its_token_away(tokens: Path) -> None:
    """The same token has always the same name; an unknown one has none."""
    read = Tokens(tokens)
    names = [read.key_of([token]) for token in ("alpha", "beta")]
    assert None not in names and len(set(names)) == 2 and "alpha" not in names
    assert read.key_of(["gamma", "beta"]) == names[1]
    assert read.key_of(["gamma", ""]) is None and read.key_of([]) is None


@in_loop
async def test_a_key_has_its_share_of_the_streams(tokens: Path) -> None:
    """Beyond it 429, while another key still gets in; a stream that ends gives its share back."""
    async with (
        serving(limits=Limits(max_streams=3, key_streams=1), token_file=tokens, rest_port=0) as server,
        connected(server, "?token=alpha") as first,
    ):
        await first.start()
        response = await refusal(server, "?token=alpha")
        assert (response.status_code, response.headers["Retry-After"]) == (429, "5")
        assert "this key has as many streams as it may have" in response.body.decode()
        async with connected(server, "?token=beta") as other:
            await other.start()
        await first.send("stop")
        await first.rest()
        async with connected(server, "?token=alpha") as again:
            await again.start()
        assert await metric(server, 'refused_total{reason="key streams"}') == 1


@in_loop
async def test_a_key_may_begin_only_so_often(tokens: Path) -> None:
    """Beyond it 429 with the seconds to wait; resuming is no beginning, and other keys are not concerned."""
    async with serving(limits=Limits(key_starts=2), token_file=tokens) as server:
        async with connected(server, "?token=alpha") as client:
            resume_token = (await client.start())["resume_token"]
            client.cut()
        async with connected(server, "?token=alpha"):
            pass
        response = await refusal(server, "?token=alpha")
        assert response.status_code == 429 and 0 < int(response.headers["Retry-After"]) <= 30
        for _ in range(3):
            async with connected(server, f"?token=alpha&resume_token={resume_token}") as back:
                assert (await back.start(resume_token=resume_token))["resumed"]
                back.cut()
        assert (await refusal(server, "?token=alpha&resume_token=guessed")).status_code == 429
        async with connected(server, "?token=beta"):
            pass
        assert await metric(server, 'refused_total{reason="key rate"}') == 2


def test_the_allowance_fills_up_again() -> None:
    """A minute's worth at once, then one for each of its parts; an idle key saves up no more than that."""
    throttle = Throttle(2)
    assert [throttle.admit("a", now=0) for _ in range(3)] == [0, 0, 30]
    assert throttle.admit("a", now=29) == 1 and throttle.admit("a", now=30) == 0
    assert [throttle.admit("a", now=10_000) for _ in range(3)] == [0, 0, 30]
    assert throttle.admit("b", now=10_000) == 0
    assert all(Throttle(None).admit("a", now=0) == 0 for _ in range(1000))


@in_loop
async def test_a_resume_token_is_of_no_use_to_another_key(tokens: Path) -> None:
    """Neither in the address nor in the start message: it is as unknown as one that never was."""
    async with serving(token_file=tokens) as server:
        async with connected(server, "?token=alpha") as owner:
            token = (await owner.start())["resume_token"]
            owner.cut()
        answers = []
        for query, stolen in (("", token), ("", "x" * len(token)), (f"&resume_token={token}", token)):
            async with connected(server, f"?token=beta{query}") as thief:
                await thief.send("start", resume_token=stolen)
                answers.append(await thief.rest())
                assert thief.websocket.close_code == 4404
        assert answers[0] == answers[1] == answers[2] and kinds(answers[0]) == ["error"]
        assert answers[0][0]["code"] == "unknown_resume_token"
        async with connected(server, f"?token=alpha&resume_token={token}") as owner:
            assert (await owner.start(resume_token=token))["resumed"]


@in_loop
async def test_resume_tokens_cannot_be_guessed() -> None:
    """Each is 32 random bytes: no two share a beginning, and none tells of its session's id."""
    async with serving(limits=Limits(max_streams=20)) as server:
        seen = []
        for _ in range(20):
            async with connected(server) as client:
                seen.append(await client.start())
    tokens = [ready["resume_token"] for ready in seen]
    assert all(len(token) == 43 for token in tokens)
    assert len({token[:8] for token in tokens}) == len({token[-8:] for token in tokens}) == 20
    assert not [ready for ready in seen if ready["session"] in ready["resume_token"]]


@in_loop
async def test_only_an_operator_sees_the_sessions(tmp_path: Path, tokens: Path) -> None:
    """A stream's token is not enough; what is shown lets nobody in and tells nothing of what was said."""
    operators = tmp_path / "operators"
    operators.write_text("root\n")
    config = {"token_file": tokens, "operator_token_file": operators}
    async with serving(**config) as server, connected(server, "?token=alpha") as client:
        ready = await client.start()
        await client.audio(1)
        await client.until("final")
        for headers in ({}, {"Authorization": "Bearer alpha"}, {"Authorization": "Bearer "}):
            assert (await get(server, "/debug/sessions", **headers))[0] == 401
        assert (await get(server, "/debug/sessions?token=root"))[0] == 401
        status, headers, body = await get(server, "/debug/sessions", Authorization="Bearer root")
        assert (status, headers["content-type"]) == (200, "application/json")
        (shown,) = json.loads(body)["sessions"]
        assert (shown["session"], shown["state"], shown["connected"]) == (ready["session"], "streaming", True)
        assert (shown["audio_s"], shown["encoding"], shown["chunk_ms"]) == (1.0, "pcm_s16le", 300)
        secrets = (ready["resume_token"], "alpha", "w0")
        assert not [secret for secret in secrets if secret in body.decode()]
        client.cut()
        while shown["connected"]:
            await asyncio.sleep(0.01)
            body = (await get(server, "/debug/sessions", Authorization="Bearer root"))[2]
            (shown,) = json.loads(body)["sessions"]
    async with serving(token_file=tokens) as server:
        assert (await get(server, "/debug/sessions", Authorization="Bearer alpha"))[0] == 404
