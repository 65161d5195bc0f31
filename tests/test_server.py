"""The server from outside: plain HTTP, who is let in, and what each handshake refusal says."""

from __future__ import annotations

import logging
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import websockets.version
from websockets.exceptions import InvalidStatus

from asr.errors import OptionError
from service.admission import Tick
from service.config import Limits, ServerConfig
from service.server import Server
from tests.fake_batcher import FakeBatcher
from tests.serving import connected, get, in_loop, metric, serving

UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade"}


async def refusal(server: Server, query: str = "", **options: Any) -> tuple[int, dict[str, str], str]:
    """The HTTP answer to a handshake that is refused."""
    with pytest.raises(InvalidStatus) as refused:
        async with connected(server, query, **options):
            pass
    response = refused.value.response
    return response.status_code, dict(response.headers), bytes(response.body or b"").decode()


@in_loop
async def test_health_and_metrics() -> None:
    """The plain pages answer with 200 and a length."""
    async with serving() as server:
        for path, start in (("/healthz", b"ok"), ("/readyz", b"ready"), ("/metrics", b"# HELP")):
            status, headers, body = await get(server, path)
            assert status == 200 and body.startswith(start)
            assert (
                headers["content-length"] == str(len(body)) and headers["x-content-type-options"] == "nosniff"
            )


@in_loop
async def test_the_page_and_its_files_are_fenced_in() -> None:
    """Every file of the page has its type and the security headers, and nothing else is served."""
    async with serving() as server:
        for path, kind in (("/", "text/html"), ("/index.html", "text/html"), ("/app.js", "text/javascript")):
            status, headers, body = await get(server, path)
            assert status == 200 and body and headers["content-type"].startswith(kind)
            assert "default-src 'none'" in headers["content-security-policy"]
            assert (headers["x-content-type-options"], headers["referrer-policy"]) == (
                "nosniff",
                "no-referrer",
            )
        for path in ("/nothing", "/../server.py", "/page/app.js", "/__init__.py", "//", "/v1", "/v1/stream/"):
            assert (await get(server, path))[0] == 404


@in_loop
async def test_the_stream_s_path_is_for_websockets() -> None:
    """A plain request is told so."""
    async with serving() as server:
        status, headers, _ = await get(server, "/v1/stream")
        assert (status, headers["upgrade"]) == (426, "websocket")
        assert (await get(server, "/v1/stream", Connection="Upgrade", Upgrade="h2c"))[0] == 426


@in_loop
async def test_a_plain_request_learns_what_a_handshake_would(tmp_path: Path) -> None:
    """A page cannot see why its handshake failed: a GET tells it, takes no place and counts as no refusal."""
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    async with serving(limits=Limits(max_streams=1), token_file=tokens) as server:
        assert (await get(server, "/v1/stream"))[0] == 401
        assert (await get(server, "/v1/stream?token=secret"))[0] == 426
        async with connected(server, "?token=secret"):
            assert (await get(server, "/v1/stream?token=secret"))[0] == 503
            assert await metric(server, 'refused_total{reason="full"}') == 0


@pytest.mark.skipif(websockets.version.version < "17", reason="older ones drop what is not GET")
@in_loop
async def test_methods() -> None:
    """HEAD is GET without the body; anything else is refused."""
    async with serving() as server:
        status, headers, body = await get(server, "/healthz?x=1", method="HEAD")
        assert (status, headers["content-length"], body) == (200, "27", b"")
        assert (await get(server, "/v1/stream", method="HEAD"))[0] == 426
        status, headers, _ = await get(server, "/", method="DELETE")
        assert (status, headers["allow"]) == (405, "GET, HEAD")


@in_loop
async def test_a_server_without_its_model_is_alive_but_not_ready() -> None:
    """While the model loads, probes and clients are told so."""
    async with Server(ServerConfig(port=0)) as server:
        assert (await get(server, "/healthz"))[0] == 200
        status, headers, body = await get(server, "/readyz")
        assert (status, headers["retry-after"], body) == (503, "5", b"loading\n")
        assert (await get(server, "/metrics"))[0] == 200
        status, headers, text = await refusal(server)
        assert (status, headers["retry-after"], text) == (503, "5", "the server is loading\n")
        server.open_for(FakeBatcher(), model="fake")
        assert (await get(server, "/readyz"))[0] == 200
        async with connected(server) as client:
            assert (await client.start())["model"] == "fake"


@in_loop
async def test_no_more_streams_than_can_be_answered_in_time() -> None:
    """What ticks take decides; /healthz and /metrics tell how many more would be let in."""
    async with serving(limits=Limits(target_latency_ms=1000.0)) as server:
        assert (await get(server, "/healthz"))[2] == b"ok\nroom for 8 more streams\n"
        for i in range(200):
            n_streams = 1 + i % 3
            server.count_tick(Tick(0.08 * n_streams, n_streams, 3, 0.3 * n_streams))
        assert await metric(server, "streams_capacity") == 3
        async with connected(server), connected(server):
            assert (await get(server, "/healthz"))[2] == b"ok\nroom for 1 more streams\n"
            async with connected(server):
                assert (await refusal(server))[0] == 503
                assert await metric(server, "streams_headroom") == 0
                for _ in range(2000):
                    server.count_tick(Tick(0.02, 1, 3, 0.3))
                assert await metric(server, "streams_capacity") == 8
                async with connected(server):
                    assert await metric(server, "streams_headroom") == 4


@in_loop
async def test_a_full_server_says_when_to_come_back() -> None:
    """Places count from the handshake, and each comes back when its connection or session ends."""
    async with serving(limits=Limits(max_streams=2, resume_s=0)) as server:
        async with connected(server) as one, connected(server):
            status, headers, text = await refusal(server)
            assert (status, headers["retry-after"]) == (503, "5") and "all places are taken" in text
            assert await metric(server, 'refused_total{reason="full"}') == 1
            await one.start()
            assert (await refusal(server))[0] == 503
            await one.send("stop")
            assert await one.close_code() == 1000
            async with connected(server) as third:
                await third.start()
                assert (await refusal(server))[0] == 503
        async with connected(server), connected(server):
            pass


@in_loop
async def test_handshakes_that_come_to_nothing_keep_no_place() -> None:
    """Neither a broken handshake nor a client that leaves at once takes a place for good."""
    async with serving(limits=Limits(max_streams=1)) as server:
        for _ in range(3):
            assert (await get(server, "/v1/stream", **UPGRADE))[0] == 400
            async with connected(server) as client:
                client.cut()
                assert await client.close_code() == 1006
        async with connected(server) as client:
            await client.start()


@in_loop
async def test_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a token file every stream needs a token, in a header or the address; pages and health do not."""
    file = tmp_path / "tokens"
    file.write_text("# ours\n\nalpha\n  beta  \n")
    async with serving(token_file=file) as server:
        for query in ("", "?token=", "?token=gamma", "?token=%23%20ours", "?token=alph%C3%A4"):
            status, headers, text = await refusal(server, query)
            assert (status, headers["www-authenticate"]) == (401, "Bearer") and "a token is needed" in text
        assert (await refusal(server, additional_headers={"Authorization": "Basic alpha"}))[0] == 401
        for query, more in (("?token=alpha", {}), ("", {"Authorization": "Bearer beta"})):
            async with connected(server, query, additional_headers=more) as client:
                await client.start()
        assert (await get(server, "/healthz"))[0] == 200
        file.write_text("gamma\n")
        server._reload_tokens()
        assert (await refusal(server, "?token=alpha"))[0] == 401
        async with connected(server, "?token=gamma"):
            pass
        file.write_text("# none\n")
        server._reload_tokens()
        assert "has no token" in caplog.text
        async with connected(server, "?token=gamma"):
            pass


@in_loop
async def test_origins() -> None:
    """A page of another host may not connect unless it is allowed by name or all are."""
    async with serving(allow_origins=("https://Friend.example",)) as server:
        own = server.url.replace("http", "https")
        for origin in (own, "https://friend.example"):
            async with connected(server, origin=origin):
                pass
        for origin in ("https://evil.example", "http://friend.example", "null", "http://127.0.0.1:1"):
            status, _, text = await refusal(server, origin=origin)
            assert status == 403 and f"--allow-origin {origin}" in text
    async with serving(allow_origins=("*",)) as server, connected(server, origin="https://evil.example"):
        pass


@in_loop
async def test_two_servers_in_one_process_do_not_share_metrics() -> None:
    """Each has its own registry."""
    async with serving() as one, serving() as two:
        async with connected(one) as client:
            await client.start()
            assert await metric(one, "sessions") == 1
            assert await metric(one, "slots_used") == 1
        assert await metric(one, "sessions_started_total") == 1
        assert await metric(two, "sessions_started_total") == 0


@in_loop
async def test_a_port_in_use_is_an_error_with_a_way_out() -> None:
    """The second server on a port is told what to do."""
    async with serving() as server:
        with pytest.raises(
            OptionError, match=f"port {server.port} on 127.0.0.1 is in use.*choose another --port"
        ):
            async with Server(ServerConfig(port=server.port)):
                pass
    with pytest.raises(OptionError, match="cannot listen on 192.0.2.1 port 0 .*check --host"):
        async with Server(ServerConfig(host="192.0.2.1", port=0, no_auth=True)):
            pass


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
@in_loop
async def test_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a certificate the addresses are https and wss, and streams work."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} -out {cert}"
    )
    command += " -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(command.split(), check=True, capture_output=True)
    async with serving(tls_cert=cert, tls_key=key) as server:
        assert server.url.startswith("https://") and server.stream_url.startswith("wss://")
        context = ssl.create_default_context(cafile=cert)
        async with connected(server, ssl=context) as client:
            await client.start()
            await client.audio(0.5)
            await client.send("stop")
            assert await client.close_code() == 1000
    locked = tmp_path / "locked.pem"
    command = f"openssl ec -in {key} -aes128 -passout pass:secret -out {locked}"
    subprocess.run(command.split(), check=True, capture_output=True)
    with pytest.raises(OptionError, match="its key without a passphrase"):
        Server(ServerConfig(tls_cert=cert, tls_key=locked))
    with pytest.raises(OptionError, match="TLS cannot use .*key.pem with .*cert.pem"):
        Server(ServerConfig(tls_cert=key, tls_key=cert))
    with pytest.raises(OptionError, match="No such file"):
        Server(ServerConfig(tls_cert=tmp_path / "none.pem", tls_key=key))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "add --token-file FILE, or --no-auth"),
        ({"host": ""}, "add --token-file FILE, or --no-auth"),
        ({"host": "example.com"}, "add --token-file FILE, or --no-auth"),
        ({"port": 65536}, "port is 65536; expected 0 to 65535"),
        ({"tls_cert": Path("c")}, "give --tls-cert and --tls-key"),
        ({"token_file": Path("t"), "no_auth": True}, "contradict each other"),
        ({"allow_origins": ("example.com",)}, "origin 'example.com' is none"),
        (
            {"allow_origins": ("https://example.com/page",)},
            "is none; expected something like https://example.com",
        ),
    ],
)
def test_settings_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    """Each is refused where it is built, with the way out."""
    with pytest.raises(OptionError, match=message.replace("*", r"\*")):
        ServerConfig(**options)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_streams", 0, "at least 1"),
        ("message_bytes", 1023, "at least 1024"),
        ("queue_s", 4.9, "at least 5"),
        ("idle_s", 0, "more than 0"),
        ("session_s", float("inf"), "more than 0"),
        ("resume_s", -1, "at least 0"),
        ("drain_s", float("nan"), "at least 0"),
    ],
)
def test_limits_out_of_range(name: str, value: float, expected: str) -> None:
    """The error names the limit, the value and what was expected."""
    with pytest.raises(OptionError, match=f"{name} is .*; expected {expected}"):
        Limits(**{name: value})


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_this_machine_needs_no_tokens(host: str) -> None:
    """Loopback addresses by any name."""
    assert ServerConfig(host=host).token_file is None


@pytest.mark.parametrize("text", ["", "\n# only a comment\n", "\xff"])
def test_token_files_without_tokens(tmp_path: Path, text: str) -> None:
    """An empty file would let nobody in."""
    file = tmp_path / "tokens"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(OptionError, match="token file .* (has no token|cannot be read)"):
        Server(ServerConfig(token_file=file))
    with pytest.raises(OptionError, match="No such file"):
        Server(ServerConfig(token_file=tmp_path / "none"))


@in_loop
async def test_the_log_has_a_line_for_start_and_end(caplog: pytest.LogCaptureFixture) -> None:
    """With the session's id, without anything that was said."""
    caplog.set_level(logging.INFO, logger="service")
    async with serving() as server, connected(server) as client:
        ready = await client.start()
        await client.audio(1)
        await client.send("stop")
        await client.rest()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"session {ready['session']} started: pcm_s16le, 16000 Hz, 300 ms chunks",
        f"session {ready['session']} ended: stop, 1.0 s of audio",
    ]


@in_loop
async def test_odd_requests_are_answered_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Repeated headers and strange addresses are the client's mistakes, not the server's."""
    async with serving() as server:
        for path in ("//[", "/%", "/?", "/healthz?token=%ff"):
            assert (await get(server, path))[0] in (200, 404)
        for name in ("Upgrade", "Origin", "Authorization"):
            twice = {name: f"websocket\r\n{name}: http://[", "Connection": "Upgrade"}
            assert (await get(server, "/v1/stream", **(UPGRADE | twice)))[0] in (400, 403, 426)
        async with connected(server) as client:
            await client.start()
    # Before version 17 websockets itself logs a handshake without a key.
    assert not [record for record in caplog.records if record.name != "websockets.server"]
