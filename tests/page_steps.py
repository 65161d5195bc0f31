"""What tests of the browser page do again and again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.chromium import NAMES, Chromium, Page, find_chromium, launch

CLIP = Path(__file__).parent / "fixtures" / "jfk.flac"
CLIP_S = 11.0

STATE = "document.querySelector('#connection').dataset.state"
IS_DONE = f"{STATE} === 'idle' && !document.querySelector('#copy').disabled"

_TEST_S = 50.0


def asynchronous(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Let pytest run a coroutine function, in an event loop of its own."""

    @functools.wraps(scenario)
    def test(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(scenario(*args, **kwargs), timeout=_TEST_S))

    return test


@contextlib.contextmanager
def browser(*arguments: str) -> Iterator[Chromium]:
    """Run a browser, or skip the test where there is none."""
    if find_chromium() is None:
        pytest.skip(f"no Chromium on PATH ({', '.join(NAMES)}); install one to test the page")
    with launch(*arguments) as chromium:
        yield chromium


def write_clip(folder: Path) -> Path:
    """Write the clip as a WAV file, which Chromium takes for a microphone."""
    samples, rate = soundfile.read(CLIP)
    path = folder / "jfk.wav"
    soundfile.write(path, samples.mean(axis=1), rate, subtype="PCM_16")
    return path


async def texts(page: Page) -> list[str]:
    """Return the paragraphs of the transcript."""
    found: list[str] = await page.evaluate(
        "[...document.querySelectorAll('#segments p')].map((each) => each.textContent)"
    )
    return found


async def stream_file(page: Page, path: Path) -> None:
    """Have a file transcribed, once the page has no transcript."""
    await page.wait_for("document.querySelector('#copy').disabled")
    await page.set_files("#file", [path])
    await page.wait_for(IS_DONE)


async def discard(page: Page) -> None:
    """Clear a transcript that was neither copied nor downloaded."""
    await page.click("#clear")
    await page.wait_for("document.querySelector('#confirm').open")
    await page.click("#confirm button[value=discard]")


async def notice(page: Page, code: str) -> str:
    """Wait for a problem and return its words."""
    await page.wait_for(f"document.querySelector('#notice:not([hidden])')?.dataset.code === {code!r}")
    return await page.text("#notice-words")


async def sent_s(page: Page) -> float:
    """Return the seconds of audio that the page says it has sent."""
    return float((await page.text("#sent")).removesuffix(" s"))


async def modules(page: Page, script: str, *names: str) -> Any:
    """Run a script in the page, with some of its modules at hand, and return what it returns."""
    imports = "".join(f"const {name} = await import('{page.url}{name}.js');" for name in names)
    return await page.evaluate(f"(async () => {{ {imports} {script} }})()")
