"""What the browser page says when something is missing, refused or unreadable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import Chromium, microphone_arguments
from tests.page_server import PageServer
from tests.page_steps import STATE, asynchronous, browser, notice, write_clip


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def chromium(wav: Path) -> Iterator[Chromium]:
    """A browser whose microphone plays the clip and asks for no permission."""
    with browser(*microphone_arguments(wav)) as chromium:
        yield chromium


@pytest.fixture
def asking_chromium() -> Iterator[Chromium]:
    """A browser with a microphone that goes by the user's permission."""
    with browser("--use-fake-device-for-media-stream") as chromium:
        yield chromium


@pytest.fixture
def bare_chromium() -> Iterator[Chromium]:
    """A browser without a microphone; page.test is this machine, but not secure."""
    with browser(
        "--use-fake-ui-for-media-stream", "--host-resolver-rules=MAP page.test 127.0.0.1"
    ) as chromium:
        yield chromium


@asynchronous
async def test_unreadable_file(chromium: Chromium) -> None:
    """A file without audio is refused in words, and nothing is sent."""
    async with PageServer() as server, chromium.page(server.url) as page:
        await page.set_files("#file", [Path(__file__)])
        assert "no audio that the browser can read" in await notice(page, "file_unreadable")
        assert await page.text("#main") == "Start microphone"
        assert server.n_connections == 0


@asynchronous
async def test_full_server(chromium: Chromium) -> None:
    """A full server is named as such."""
    async with PageServer(is_full=True) as server, chromium.page(server.url) as page:
        await page.click("#main")
        assert "The server is full" in await notice(page, "server_full")
        assert await page.evaluate(f"{STATE} === 'idle'")


@asynchronous
async def test_refusal_without_a_reason(chromium: Chromium) -> None:
    """Where the server does not say why, the page names both reasons and offers the token field."""
    async with PageServer(token="s3cret") as server, chromium.page(server.url) as page:
        server.is_terse = True
        await page.click("#main")
        words = await notice(page, "refused")
        assert "places may all be taken" in words and "access token" in words
        await page.type("s3cret")
        await page.click("#token-form button")
        await page.wait_for(f"{STATE} === 'live'")


@asynchronous
async def test_token(chromium: Chromium) -> None:
    """The page asks for a token, says when it is wrong, and keeps the right one for this tab only."""
    async with PageServer(token="s3cret") as server, chromium.page(server.url) as page:
        await page.click("#main")
        assert "asks for an access token" in await notice(page, "token_needed")
        await page.type("wrong")
        await page.click("#token-form button")
        assert "was not accepted" in await notice(page, "token_wrong")
        await page.type("s3cret")
        await page.click("#token-form button")
        await page.wait_for(f"{STATE} === 'live'")
        assert await page.evaluate("sessionStorage.getItem('foresound.token')") == "s3cret"
        assert "s3cret" not in await page.evaluate("JSON.stringify(localStorage) + document.body.innerHTML")


@asynchronous
async def test_vanished_server(chromium: Chromium, wav: Path) -> None:
    """A server that is gone when the user starts is named as such."""
    async with PageServer() as server, chromium.page(server.url) as page:
        await server.__aexit__()
        await page.set_files("#file", [wav])
        assert "The server does not answer" in await notice(page, "server_gone")


@asynchronous
async def test_blocked_microphone(asking_chromium: Chromium) -> None:
    """A microphone that the user refuses is explained; allowing it is enough to go on."""
    async with PageServer() as server, asking_chromium.page(server.url) as page:
        await page.set_permission("microphone", "denied")
        await page.click("#main")
        assert "microphone is blocked" in await notice(page, "microphone_denied")
        await page.set_permission("microphone", "granted")
        await page.click("#main")
        await page.wait_for(f"{STATE} === 'live'")
        assert await page.evaluate("document.querySelector('#notice').hidden")
        assert page.errors == []


@asynchronous
async def test_no_microphone(bare_chromium: Chromium) -> None:
    """A missing microphone and a page without https each get their own explanation."""
    async with PageServer() as server:
        async with bare_chromium.page(server.url) as page:
            await page.click("#main")
            assert "No microphone found" in await notice(page, "no_microphone")
            assert page.errors == []
        async with bare_chromium.page(f"http://page.test:{server.port}/") as page:
            await page.click("#main")
            assert "needs a secure page" in await notice(page, "insecure_context")
