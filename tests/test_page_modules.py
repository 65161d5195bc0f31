"""Modules of the browser page by themselves, called in the page: documents, samples, latencies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from asr.events import SAMPLE_RATE, Final, Transcript, Word
from clients.formats import render
from tests.chromium import Chromium
from tests.page_server import PageServer
from tests.page_steps import asynchronous, browser, modules


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with browser() as chromium:
        yield chromium


@asynchronous
async def test_documents_equal_those_of_the_command_line(chromium: Chromium) -> None:
    """The page writes what `foresound transcribe` writes, for long, fast, odd and foreign segments."""
    transcript = odd_transcript()
    segments = [page_segment(final) for final in transcript.segments]
    about = {"file": "a.wav", "model": "tiny.en", "language": "en", "duration": transcript.duration_s}
    async with PageServer() as server, chromium.page(server.url) as page:
        documents = await modules(
            page,
            f"""
            const [segments, about] = [{json.dumps(segments)}, {json.dumps(about)}];
            return formats.FORMATS.map((name) => formats.render(segments, name, about));
            """,
            "formats",
        )
    for name, document in zip(("txt", "srt", "vtt", "json"), documents, strict=True):
        expected = render(transcript, name, file="a.wav", model="tiny.en", language="en")
        if name == "json":
            assert json.loads(document) == json.loads(expected)
        else:
            assert document == expected


def odd_transcript() -> Transcript:
    def final(text: str, words: str, *, start_s: float, word_s: float = 0.4, pause_s: float = 0.0) -> Final:
        timed, at_s = [], start_s
        for i, word in enumerate(words.split()):
            at_s += pause_s if i == 3 else 0.0
            start, end = round(at_s * SAMPLE_RATE), round((at_s + 0.8 * word_s) * SAMPLE_RATE)
            timed.append(Word(text=word, start=start, end=end, confidence=0.87654, stable=True))
            at_s += word_s
        start, end = round(start_s * SAMPLE_RATE), round(max(at_s, start_s + 1) * SAMPLE_RATE)
        return Final(len(finals), text, tuple(timed), start=start, end=end, second_pass=False, time=end)

    finals: list[Final] = []
    long = (
        "And so, my fellow Americans, ask not what your country can do for you. Ask what you can do "
        "for your country, & that is <all> there is --> to say about it tonight, is it not? Yes."
    )
    finals.append(final(long, long, start_s=0.0))
    finals.append(final("", "", start_s=20.0))
    finals.append(final("a pause\tinside of it", "a pause inside of it", start_s=30.0, pause_s=2.0))
    finals.append(final("你好世界。再见", "你好 世界。 再见", start_s=40.0))
    finals.append(final("quick one two", "quick one two", start_s=50.0, word_s=0.02))
    finals.append(final("one two", "eleven", start_s=60.0))
    finals.append(final("no words, " * 10, "", start_s=70.0))
    finals.append(final('He said "hi" 😀 and left.', 'He said "hi" 😀 and left.', start_s=3661.5))
    return Transcript(tuple(finals), duration=finals[-1].end + 8000)


def page_segment(final: Final) -> dict[str, Any]:
    words = [
        {
            "text": word.text,
            "start": round(word.start_s, 3),
            "end": round(word.end_s, 3),
            "confidence": word.confidence,
        }
        for word in final.words
    ]
    return {
        "id": final.segment,
        "text": final.text,
        "words": words,
        "start": round(final.start_s, 3),
        "end": round(final.end_s, 3),
        "secondPass": final.second_pass,
    }


@asynchronous
async def test_parts_of_the_page(chromium: Chromium) -> None:
    """The modules without browser interfaces, by themselves: numbers, PCM, frames, the outbox, latencies."""
    async with PageServer() as server, chromium.page(server.url) as page:
        assert await modules(
            page,
            """
            return [
              [7.9, 754, 3723].map(text.clockTime),
              [null, 0.4, 310, 1250, 12_540].map(text.duration),
            ];
            """,
            "text",
        ) == [["0:07", "12:34", "1:02:03"], ["–", "0 ms", "310 ms", "1.25 s", "12.5 s"]]
        assert await modules(
            page,
            """
            const framer = new pcm.Framer(3);
            const blocks = [[1, 2], [3, 4, 5, 6, 7], []].map((block) => new Float32Array(block));
            const frames = blocks.flatMap((block) => framer.push(block));
            return [
              [...pcm.encodePcm16(new Float32Array([0, 1, -1, 2, -2, 0.5]))],
              [...frames, framer.rest()].map((frame) => [...frame]),
              [pcm.levelDb(new Float32Array(9)), pcm.levelDb(new Float32Array([1, -1]))],
            ];
            """,
            "pcm",
        ) == [[0, 32767, -32767, 32767, -32767, 16384], [[1, 2, 3], [4, 5, 6], [7]], [-60, 0]]
        assert await modules(
            page,
            """
            const box = new outbox.Outbox(10);
            const pieces = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]].map((each) => new Uint8Array(each));
            const pushed = pieces.map((each) => box.push(each));
            const sent = [[...box.next()], [...box.next()], box.hasUnsent];
            box.acknowledge(2);
            const again = [box.rewind(1), box.rewind(9), box.rewind(3), [...box.next()], [...box.next()]];
            return [pushed, sent, again, box.acknowledgedBytes, box.keptBytes];
            """,
            "outbox",
        ) == [
            [True, True, False],
            [[1, 2, 3, 4], [5, 6, 7, 8], False],
            [False, False, True, [4], [5, 6, 7, 8]],
            3,
            5,
        ]
        assert await modules(
            page,
            """
            const clock = new latency.CaptureClock();
            for (let i = 1; i <= 100; i += 1) clock.note(i / 50, 5000 + 20 * i + (i % 7) * 9); // late
            const words = new latency.WordLatency(clock);
            const word = (text, stable) => ({text, end: 1.0, stable});
            words.observe({type: "partial", segment: 0, words: [word("as", false)]}, 6300);
            words.observe({type: "partial", segment: 0, words: [word("ask", true)]}, 6500);
            words.observe({type: "final", segment: 0, words: [word("Ask.", true)]}, 6900);
            words.observe({type: "final", segment: 1, second_pass: true, words: [word("late", true)]}, 9000);
            return [clock.capturedAt(0.5), words.shown.last, words.shown.median, words.committed.median];
            """,
            "latency",
        ) == [5500, 500, 400, 500]
