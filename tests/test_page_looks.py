"""How the browser page looks in every size and colour scheme, and how it works without a mouse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import Chromium, Page, microphone_arguments
from tests.page_server import SCRIPT, PageServer, segment
from tests.page_steps import asynchronous, browser, notice, stream_file, write_clip

WINDOWS = {"desktop": (1280, 800), "low": (844, 390), "phone": (390, 844), "narrow": (320, 600)}

# Text, its colour and the first opaque colour behind it, of every visible element with text of its own.
CONTRASTS = """(() => {
  const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
  const channels = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => channels(colour).slice(0, 3)
    .map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return channels(colour)[3] === 255 || !element.parentElement ? colour : ground(element.parentElement);
  };
  return [...document.querySelectorAll("body *")]
    .filter((each) => each.checkVisibility() && each.getBoundingClientRect().width > 1)
    .filter((each) => !each.closest(":disabled"))
    .filter((each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((each) => {
      const pair = [luminance(getComputedStyle(each).color), luminance(ground(each))].sort((a, b) => b - a);
      return [each.textContent.trim().slice(0, 40), (pair[0] + 0.05) / (pair[1] + 0.05)];
    });
})()"""


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


async def overflow(page: Page) -> list[str]:
    """Return what sticks out of the window, and rows that are too narrow for what is in them."""
    found: list[str] = await page.evaluate(
        """[...document.querySelectorAll("body *")].filter((each) => {
          const box = each.getBoundingClientRect();
          const isOutside = box.right > document.documentElement.clientWidth + 0.5 || box.left < -0.5;
          const isTight = each.matches(".top, .toolbar, .dock, .notice, .tiles div, button")
            && each.scrollWidth > each.clientWidth + 1;
          return box.width > 1 && (isOutside || isTight) && !each.closest(".visually-hidden");
        }).map((each) => each.outerHTML.slice(0, 80))"""
    )
    width = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return found if width <= 0 else [*found, f"the page is {width} px too wide"]


async def faint_texts(page: Page) -> list[tuple[str, float]]:
    """Return texts with a contrast below 4.5 and it."""
    return [(text, contrast) for text, contrast in await page.evaluate(CONTRASTS) if contrast < 4.5]


@asynchronous
async def test_looks(chromium: Chromium, wav: Path, screenshots: Path) -> None:
    """In every width, light and dark, nothing sticks out and texts have the contrast of WCAG AA."""
    async with PageServer() as server, chromium.page(server.url) as page:
        await stream_file(page, wav)
        await page.evaluate("document.querySelector('.word').className = 'word draft'")
        for name, (width, height) in WINDOWS.items():
            await page.set_size(width, height, mobile=width < 1000)
            for scheme in ("light", "dark"):
                await page.set_media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
                assert await overflow(page) == []
                assert await faint_texts(page) == [], (name, scheme)
                await page.screenshot(screenshots / f"{name}-{scheme}.png")
        await page.click("#settings-toggle")
        assert await overflow(page) == []
        await page.screenshot(screenshots / "narrow-settings.png")
        await page.press("Escape")
        assert not await page.evaluate("document.querySelector('#settings').checkVisibility()")
        assert page.errors == []


@asynchronous
async def test_phone_while_it_records(chromium: Chromium, screenshots: Path) -> None:
    """A telephone's window holds the running page without scrolling sideways."""
    async with PageServer(cuts_s=(1.8,)) as server, chromium.page(server.url) as page:
        await page.set_size(390, 844, scale=2, mobile=True)
        await page.set_media(prefers_color_scheme="dark")
        await page.navigate(server.url)  # a change of colours would take its time
        assert await overflow(page) == []
        assert await faint_texts(page) == []
        await page.screenshot(screenshots / "phone-empty.png")
        await page.click("#main")
        await page.wait_for("document.querySelectorAll('.word').length > 1")
        assert await overflow(page) == []
        await page.screenshot(screenshots / "phone-live.png")
        server.is_away = True
        assert "Trying again" in await notice(page, "reconnecting")
        assert await overflow(page) == []
        assert await faint_texts(page) == []
        await page.screenshot(screenshots / "phone-reconnecting.png")


@asynchronous
async def test_keyboard(chromium: Chromium, wav: Path) -> None:
    """Arrow keys walk through the words and tell about each; every control has a name."""
    async with PageServer() as server, chromium.page(server.url) as page:
        await stream_file(page, wav)
        await page.evaluate("document.querySelector('#scroller').focus()")
        for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
            await page.press(key)
        assert await page.text(":focus") == "so,"
        assert await page.text("#word-info") == "0.70 – 1.02 s · 97 % confident"
        await page.press("Escape")
        assert await page.evaluate("document.querySelector('#word-info').hidden")
        nameless = await page.evaluate(
            """[...document.querySelectorAll("button, input, select, [role=meter], progress")]
              .filter((each) => !each.ariaLabel && !each.innerText?.trim() && !each.labels?.length
                && !each.hasAttribute("aria-labelledby")).map((each) => each.outerHTML)"""
        )
        assert nameless == []
        said = " ".join(word for each in SCRIPT for word, _, _ in each.words)
        assert await page.text("#announcer") == said


@asynchronous
async def test_scrolling_stops_at_the_reader(chromium: Chromium, wav: Path) -> None:
    """The newest words stay in view until the reader scrolls up; a button leads back."""
    script = [segment(f"sentence number {i} of very many", 0.2 + 0.5 * i, 0.6 + 0.5 * i) for i in range(20)]
    at_end = "scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 2"
    async with PageServer(script=script, speed=6) as server, chromium.page(server.url) as page:
        await page.set_size(390, 600)
        await page.set_files("#file", [wav])
        await page.wait_for("document.querySelectorAll('li').length === 8")
        assert await page.evaluate(at_end)
        await page.evaluate("scroller.scrollTop = 0")
        await page.wait_for("!document.querySelector('#jump').hidden")
        await page.wait_for("document.querySelectorAll('li').length === 12")
        assert await page.evaluate("scroller.scrollTop === 0")
        await page.click("#jump")
        assert await page.evaluate(at_end)
        assert await page.evaluate("document.querySelector('#jump').hidden")
