"""The browser page in headless Chromium: a microphone that plays a clip, files, broken connections."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pysubs2
import pytest
import webvtt

from asr.events import SAMPLE_RATE
from tests.chromium import Chromium, microphone_arguments
from tests.page_server import SCRIPT, PageServer, segment
from tests.page_steps import (
    CLIP_S,
    IS_DONE,
    STATE,
    asynchronous,
    browser,
    discard,
    notice,
    sent_s,
    stream_file,
    texts,
    write_clip,
)

SCRIPT_TEXTS = [" ".join(word for word, _, _ in each.words) for each in SCRIPT]
SCRIPT_DOCUMENT = "\n".join(SCRIPT_TEXTS) + "\n"
# Spoken within seconds, so that tests with a microphone, which take real time, are short.
SHORT_SCRIPT = (segment("And so, my", 0.3, 1.2), segment("fellow Americans,", 1.9, 2.3))


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def chromium(wav: Path) -> Iterator[Chromium]:
    """A browser whose microphone plays the clip and asks for no permission."""
    with browser(*microphone_arguments(wav)) as chromium:
        yield chromium


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where pictures for a person to look at are written."""
    return Path(os.environ.get("FORESOUND_SCREENSHOTS", tmp_path))


@asynchronous
async def test_microphone(chromium: Chromium, screenshots: Path) -> None:
    """Words appear as drafts, are committed and become final while the microphone runs; the meters move."""
    async with PageServer(script=SHORT_SCRIPT) as server, chromium.page(server.url) as page:
        await page.set_size(1280, 800)
        await page.click("#main")
        await page.wait_for("document.querySelector('.word.draft')")
        await page.wait_for("document.querySelector('li[data-state=open] .word.stable')")
        await page.wait_for("Number(document.querySelector('#level').getAttribute('aria-valuenow')) > -40")
        await page.wait_for("document.querySelector('li[data-state=final]')")
        assert await page.text("#connection-text") == "Live"
        assert await page.text("#main") == "Stop"
        await page.wait_for("document.querySelectorAll('li + li .word').length === 2")
        await page.screenshot(screenshots / "desktop.png")
        await page.click("#main")
        await page.wait_for(IS_DONE)
        assert await texts(page) == ["And so, my", "fellow Americans,"]
        latencies = [
            int((await page.text(f"#{name}")).split()[0]) for name in ("shown-median", "committed-median")
        ]
        # The script says a word with the first 100 ms of audio after its end, and commits it 500 ms later.
        assert 0 <= latencies[0] < 450 and 400 <= latencies[1] < 1000
        assert await page.text("#sent") == await page.text("#acknowledged")
        (session,) = server.sessions
        assert session.start["encoding"] == "pcm_s16le" and 8000 <= session.start["sample_rate"] <= 48000
        assert any(session.audio) and session.heard_s == pytest.approx(await sent_s(page), abs=0.06)
        assert page.errors == []


@asynchronous
async def test_recordings_go_on_below_each_other(chromium: Chromium) -> None:
    """A second start adds to the transcript, with later times; Stop before the first word yields nothing."""
    script = (segment("And so", 0.2, 0.6),)
    async with PageServer(script=script) as server, chromium.page(server.url) as page:
        for n_recordings in (1, 2):
            await page.click("#main")
            await page.wait_for(
                f"document.querySelectorAll('li[data-state=final]').length === {n_recordings}"
            )
            await page.click("#main")
            await page.wait_for(IS_DONE)
        assert await texts(page) == ["And so", "And so"]
        await page.click("li:last-child .word:last-child")
        first_s = server.sessions[0].heard_s
        _, start_s, end_s = script[0].words[-1]
        said = await page.text("#word-info")
        assert said.startswith(f"{first_s + start_s:.2f} – {first_s + end_s:.2f} s")
        assert page.errors == []


@asynchronous
async def test_file(chromium: Chromium, wav: Path, tmp_path: Path, screenshots: Path) -> None:
    """A file is streamed whole with a progress bar; the words, its times and all downloads are there."""
    async with (
        PageServer(speed=8) as server,
        chromium.page(server.url, downloads=tmp_path) as page,
    ):
        await page.set_size(1280, 800)
        await page.set_files("#file", [wav])
        await page.wait_for("document.querySelector('#progress').value > 0.3")
        assert await page.text("#file-name") == "jfk.wav"
        assert await page.text("#main") == "Cancel"
        await page.screenshot(screenshots / "file.png")
        await page.wait_for(IS_DONE)
        (session,) = server.sessions
        assert session.start["sample_rate"] == SAMPLE_RATE
        assert session.n_samples == pytest.approx(CLIP_S * SAMPLE_RATE, abs=10)
        assert await texts(page) == SCRIPT_TEXTS
        for suffix in ("txt", "srt", "vtt", "json"):
            await page.evaluate(f"document.querySelector('#format').value = {suffix!r}")
            await page.click("#download")
            await wait_for_file(tmp_path / f"jfk.{suffix}")
        check_documents(tmp_path, session.heard_s)
        assert page.errors == []


async def wait_for_file(path: Path) -> None:
    for _ in range(200):
        if path.exists() and path.stat().st_size > 0:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{path.name} was not downloaded")


def check_documents(folder: Path, duration_s: float) -> None:
    """The downloads are read back by readers that are not ours."""
    assert (folder / "jfk.txt").read_text() == SCRIPT_DOCUMENT
    cues = [(round(1000 * each.start), round(1000 * each.end)) for each in SCRIPT]
    subtitles = pysubs2.load(str(folder / "jfk.srt"))
    assert [cue.plaintext for cue in subtitles] == SCRIPT_TEXTS
    assert [(cue.start, cue.end) for cue in subtitles] == cues
    captions = webvtt.from_buffer(io.StringIO((folder / "jfk.vtt").read_text()))
    assert [cue.text for cue in captions.captions] == SCRIPT_TEXTS
    document = json.loads((folder / "jfk.json").read_text())
    assert document["text"] == " ".join(SCRIPT_TEXTS)
    assert (document["file"], document["model"]) == ("jfk.wav", "tiny.en")
    assert document["duration"] == pytest.approx(duration_s, abs=0.001)
    assert [each["start"] for each in document["segments"]] == [each.start for each in SCRIPT]
    assert document["segments"][0]["words"][0] == {
        "word": "And",
        "start": 0.3,
        "end": 0.62,
        "probability": 0.97,
    }


@asynchronous
async def test_resume(chromium: Chromium, wav: Path) -> None:
    """After two cuts the server has every byte of a file once, and the text is that of an unbroken stream."""
    async with PageServer(speed=20, cuts_s=(2.5, 8.0)) as server, chromium.page(server.url) as page:
        await page.set_files("#file", [wav])
        await page.wait_for(f"{STATE} === 'reconnecting'")
        assert "connection is lost" in await notice(page, "reconnecting")
        await page.wait_for(IS_DONE)
        assert await page.evaluate("document.querySelector('#notice').hidden")
        assert server.n_connections == 3
        assert await texts(page) == SCRIPT_TEXTS
        await discard(page)
        await stream_file(page, wav)
        broken, whole = server.sessions
        assert broken.resumed_after[1] > broken.resumed_after[0] > 0
        assert broken.audio == whole.audio


@asynchronous
async def test_resume_of_a_microphone(chromium: Chromium) -> None:
    """What was said while the server was away is sent afterwards; nothing is doubled."""
    async with PageServer(script=SHORT_SCRIPT, cuts_s=(0.7,)) as server, chromium.page(server.url) as page:
        server_back = asyncio.get_running_loop().call_later
        await page.click("#main")
        await page.wait_for(f"{STATE} === 'live'")
        server.is_away = True
        await page.wait_for(f"{STATE} === 'reconnecting'")
        assert await page.text("#main") == "Stop"
        server_back(0.6, lambda: setattr(server, "is_away", False))
        await page.wait_for("document.querySelectorAll('li[data-state=final]').length === 2")
        await page.click("#main")
        await page.wait_for(IS_DONE)
        assert await texts(page) == ["And so, my", "fellow Americans,"]
        assert len(server.sessions) == 1 and server.n_connections == 2
        assert server.sessions[0].heard_s == pytest.approx(await sent_s(page), abs=0.06)


@asynchronous
async def test_server_that_forgot_the_session(chromium: Chromium) -> None:
    """A restarted server knows no token: the page says so, keeps the text and can start again."""
    async with PageServer(script=SHORT_SCRIPT, cuts_s=(1.6,)) as server, chromium.page(server.url) as page:
        server.forgets = True
        await page.click("#main")
        assert "no longer knows this recording" in await notice(page, "unknown_resume_token")
        assert await texts(page) == ["And so, my"]
        assert await page.text("#main") == "Start microphone"


@asynchronous
async def test_cancelled_file(chromium: Chromium, wav: Path) -> None:
    """Cancel ends a file at once; the words so far stay."""
    async with PageServer(speed=8) as server, chromium.page(server.url) as page:
        await page.set_files("#file", [wav])
        await page.wait_for("document.querySelectorAll('li').length === 2")
        await page.click("#main")
        await page.wait_for(IS_DONE)
        assert (await texts(page))[0] == SCRIPT_TEXTS[0]
        assert server.sessions[0].heard_s < CLIP_S - 1
        assert page.errors == []


@asynchronous
async def test_leaving_the_page(chromium: Chromium) -> None:
    """Who leaves while recording gives the place on the server back at once.

    The page is told that it is left, and stays: a browser that really goes on may drop what a page says last.
    """
    async with PageServer() as server, chromium.page(server.url) as page:
        await page.click("#main")
        await page.wait_for("document.querySelector('.word')")
        await page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide'))")
        while not server.sessions[0].is_done:
            await asyncio.sleep(0.02)


@asynchronous
async def test_settings_reach_the_server(chromium: Chromium, wav: Path) -> None:
    """Latency, second pass and, with a multilingual model, the language are sent and remembered."""
    async with PageServer(model="base") as server, chromium.page(server.url) as page:
        await page.set_size(1280, 800)
        await page.click("input[value=minimal]")
        await page.click("input[name=second_pass]")
        assert await page.evaluate("document.querySelector('#language-field').hidden")
        await stream_file(page, wav)
        await page.wait_for("document.querySelector('li.second-pass')")
        assert await page.text("#model") == "base"
        await page.click("#language")
        await page.type("DE")
        await page.evaluate("document.activeElement.blur()")
        await discard(page)
        await stream_file(page, wav)
        first, second = (session.start for session in server.sessions)
        assert (first["latency"], first["second_pass"], first["language"]) == ("minimal", True, None)
        assert second["language"] == "de"
        await page.navigate(server.url)
        assert await page.evaluate("document.querySelector('input[value=minimal]').checked")
        assert page.errors == []


@asynchronous
async def test_unsaved_text_is_not_thrown_away(chromium: Chromium, wav: Path) -> None:
    """Clear asks first, unless the text was copied or downloaded; the copy is the document."""
    async with PageServer() as server, chromium.page(server.url) as page:
        await page.set_permission("clipboard-write", "granted")
        await page.set_permission("clipboard-read", "granted")
        await stream_file(page, wav)
        await page.click("#clear")
        await page.wait_for("document.querySelector('#confirm').open")
        await page.click("#confirm button[value=keep]")
        assert await texts(page) == SCRIPT_TEXTS
        await page.click("#copy")
        await page.wait_for("document.querySelector('#copy').innerText === 'Copied'")
        assert await page.evaluate("navigator.clipboard.readText()") == SCRIPT_DOCUMENT
        await page.click("#clear")
        assert await texts(page) == []
        assert page.errors == []
