"""Training streams: joined, augmented recordings with the time at which each token is due.

Everything is drawn from (seed, epoch, index), so a resumed run sees the data it would have seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import soxr
from whisper.tokenizer import Tokenizer

from asr.bpe import TruncatedBpe
from asr.errors import AudioError
from asr.events import SAMPLE_RATE
from asr.words import Vocabulary
from training.alignment import AlignedUtterance
from training.config import DataConfig
from training.manifest import Utterance, WordTime, load_audio
from training.rooms import N_ROOMS, reverberate

MAX_PROMPT_TOKENS = 64
MARK_DELAY_S = 0.3  # a punctuation mark is due this long after its word: it depends on what follows
MAX_SAMPLES = 29 * SAMPLE_RATE  # of one stream
MAX_GAP_S = 0.6  # silence put between joined utterances


@dataclass(frozen=True)
class Item:
    """One stream of a batch before its audio is read: utterances that follow one another."""

    utterances: tuple[Utterance, ...]  # empty: noise only
    previous: Utterance | None  # the one before, for the prompt
    seed: int


@dataclass(frozen=True)
class SaidWord(WordTime):
    """A word in a stream that knows where it comes from."""

    source: tuple[str, int] = ("", 0)
    """Utterance and number of the word in it."""


@dataclass(frozen=True)
class Example:
    """One training stream.

    Attributes:
        clean: Float32 audio before noise, ``[S]``; what the teacher hears.
        noisy: Float32 audio, ``[S]``; what the student hears.
        prefix: Tokens before the text: prompt and start of transcript.
        tokens: Text tokens, or None where the words are unknown.
        due_s: Seconds at which each text token is due, nondecreasing; NaN where it is not trained on.
        words: Sources of the words in the text, in order.
        word_of: Index into ``words`` of each text token; as long as ``tokens``, or empty.
    """

    clean: np.ndarray
    noisy: np.ndarray
    prefix: tuple[int, ...]
    tokens: tuple[int, ...] | None
    due_s: np.ndarray
    words: tuple[tuple[str, int], ...] = ()
    word_of: tuple[int, ...] = ()


class StreamDataset:
    """Draws epochs of batches of streams from aligned utterances."""

    def __init__(
        self,
        config: DataConfig,
        *,
        utterances: Sequence[Utterance],
        aligned: Mapping[str, AlignedUtterance],
        noises: Sequence[Utterance],
        tokenizer: Tokenizer,
        margin_s: float,
        seed: int,
        spelling: TruncatedBpe | None = None,
        replayed: Sequence[Utterance] = (),
    ) -> None:
        """Keep what epochs are drawn from; only the noises are read here.

        Args:
            config: Shares and lengths.
            utterances: Those without text, or with text and an alignment, in manifest order.
            aligned: Spelled texts and word times by id.
            noises: Recordings without speech.
            tokenizer: Whisper's.
            margin_s: How long after its end a word is due.
            seed: Of all random draws.
            spelling: What texts are cut into tokens by; None is the tokenizer.
            replayed: Others like them, of which each epoch draws its ``replay_share``.
        """
        self._config = config
        self._chains, self._replayed = (
            _chains([u for u in several if u.text is None or u.id in aligned])
            for several in (utterances, replayed)
        )
        self._aligned = aligned
        self._noises = [sound for sound in map(_read, noises) if sound is not None]
        self._tokenizer = tokenizer
        self._vocabulary = Vocabulary(tokenizer)
        self._margin_s = margin_s
        self._seed = seed
        self._encode: Callable[[str], list[int]] = (spelling or tokenizer).encode

    def plan(self, epoch: int) -> list[list[Item]]:
        """The batches of an epoch; each holds streams of similar length."""
        rng = np.random.default_rng([self._seed, epoch])
        items = [item for chain in self._chains for item in self._split(chain, rng)]
        items += self._replay(sum(map(_length_s, items)), rng)
        n_noise = round(len(items) * self._config.noise_only_share) if self._noises else 0
        items += [Item((), None, int(rng.integers(2**31))) for _ in range(n_noise)]
        items.sort(key=lambda item: _length_s(item) * rng.uniform(0.9, 1.1))
        batches: list[list[Item]] = [[]]
        for item in items:
            longest = max((_length_s(other) for other in (*batches[-1], item)), default=0.0)
            if batches[-1] and longest * (len(batches[-1]) + 1) > self._config.batch_s:
                batches.append([])
            batches[-1].append(item)
        return [batches[i] for i in rng.permutation(len(batches))]

    def load(self, item: Item) -> Example:
        """Read, join and augment one stream."""
        rng = np.random.default_rng(item.seed)
        if not item.utterances:
            return self._noise_example(rng)
        pieces, words, known = self._join(item, rng)
        audio = np.concatenate(pieces)
        prompt = self._text(item.previous) if item.previous else ""
        if known and rng.random() < self._config.cut_share:
            audio, words, prompt = _cut_start(audio, words, prompt, rng)
        speed = float(rng.choice(self._config.speeds))
        if speed != 1.0:
            audio = soxr.resample(audio, round(SAMPLE_RATE * speed), SAMPLE_RATE)
        audio, words = _keep_start(audio, words, speed)
        audio = (audio * 10 ** (rng.uniform(-15, 3) / 20)).clip(-1, 1).astype(np.float32)
        use_prompt = bool(prompt) and rng.random() < self._config.prompt_share
        noisy, prefix = self._spoil(audio, rng), self._prefix(prompt if use_prompt else "")
        if not known:
            return Example(audio, noisy, prefix, None, np.zeros(0))
        tokens, due, word_of = self._tokens(words, speed)
        return Example(audio, noisy, prefix, tokens, due, tuple(word.source for word in words), word_of)

    def word(self, id: str, number: int) -> str:
        """A word of an aligned utterance."""
        return self._aligned[id].words[number].word

    def _split(self, chain: Sequence[Utterance], rng: np.random.Generator) -> Iterator[Item]:
        """Cut a chain of neighbouring utterances into streams of random length."""
        group: list[Utterance] = []
        previous: Utterance | None = None
        target = self._target_s(rng)
        for utterance in chain:
            length = sum(u.duration_s for u in group) + utterance.duration_s
            if group and length > target:
                yield Item(tuple(group), previous, int(rng.integers(2**31)))
                previous, group, target = group[-1], [], self._target_s(rng)
            group.append(utterance)
        yield Item(tuple(group), previous, int(rng.integers(2**31)))

    def _replay(self, own_s: float, rng: np.random.Generator) -> list[Item]:
        """Streams of general recordings beside ``own_s`` seconds of the others."""
        share = self._config.replay_share
        missing_s = own_s * share / (1 - share) if self._replayed else 0.0
        drawn: list[Item] = []
        while missing_s > 0:
            items = [item for chain in self._replayed for item in self._split(chain, rng)]
            for index in rng.permutation(len(items)):
                if missing_s > 0:
                    drawn.append(items[index])
                    missing_s -= _length_s(items[index])
        return drawn

    def _target_s(self, rng: np.random.Generator) -> float:
        if rng.random() < self._config.short_share:
            return float(rng.uniform(1, 10))
        return float(rng.uniform(0.6, 1.0) * self._config.joined_max_s)

    def _join(self, item: Item, rng: np.random.Generator) -> tuple[list[np.ndarray], list[SaidWord], bool]:
        """Audio pieces, their words in stream time, and whether all the words are known."""
        pieces = [np.zeros(int(rng.uniform(0, 1.5) * SAMPLE_RATE * (rng.random() < 0.3)), np.float32)]
        words: list[SaidWord] = []
        n_samples = len(pieces[0])
        for utterance in item.utterances:
            samples = _read(utterance)
            if samples is None:
                continue
            if utterance.id in self._aligned:
                at = n_samples / SAMPLE_RATE
                words += [
                    SaidWord(w.word, w.start_s + at, w.end_s + at, w.confidence, (utterance.id, i))
                    for i, w in enumerate(self._aligned[utterance.id].words)
                ]
            gap = np.zeros(int(rng.uniform(0, MAX_GAP_S) * SAMPLE_RATE), np.float32)
            pieces += [samples, gap]
            n_samples += len(samples) + len(gap)
        return pieces, words, all(u.id in self._aligned for u in item.utterances)

    def _text(self, utterance: Utterance) -> str:
        return self._aligned[utterance.id].text if utterance.id in self._aligned else ""

    def _prefix(self, prompt: str) -> tuple[int, ...]:
        start = (*self._tokenizer.sot_sequence, self._tokenizer.no_timestamps)
        if not prompt:
            return start
        return (self._tokenizer.sot_prev, *self._tokenizer.encode(" " + prompt)[-MAX_PROMPT_TOKENS:], *start)

    def _tokens(
        self, words: Sequence[WordTime], speed: float
    ) -> tuple[tuple[int, ...], np.ndarray, tuple[int, ...]]:
        """Text tokens, when each is due in the stream played at ``speed``, and the word it belongs to."""
        tokens: list[int] = []
        due: list[float] = []
        word_of: list[int] = []
        latest = 0.0
        for i, word in enumerate(words):
            ids = self._encode(" " + word.word)
            latest = max(latest, word.end_s / speed + self._margin_s)
            spoken = self._vocabulary.n_spoken(ids)
            times = [latest] * spoken + [latest + MARK_DELAY_S] * (len(ids) - spoken)
            tokens += ids
            word_of += [i] * len(ids)
            due += times if word.confidence >= self._config.min_confidence else [np.nan] * len(ids)
        return tuple(tokens), _nondecreasing(np.array(due)), tuple(word_of)

    def _spoil(self, audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Put a stream into a room, and noise into the room, or not."""
        if self._config.reverb_share and rng.random() < self._config.reverb_share:
            audio = reverberate(audio, int(rng.integers(N_ROOMS)))
        dither = rng.standard_normal(len(audio)).astype(np.float32) * np.float32(10 ** rng.uniform(-4.5, -3))
        if not self._noises or rng.random() >= self._config.noise_share:
            return audio + dither if rng.random() < 0.5 else audio
        noise = self._noise(len(audio), rng)
        loudness = np.sqrt((audio**2).mean() / ((noise**2).mean() + 1e-9))
        level = np.float32(loudness * 10 ** (-rng.uniform(5, 25) / 20))
        return (audio + noise * level + dither).clip(-1, 1).astype(np.float32)

    def _noise(self, n_samples: int, rng: np.random.Generator) -> np.ndarray:
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < n_samples:
            parts.append(self._noises[int(rng.integers(len(self._noises)))])
        return np.concatenate(parts)[:n_samples]

    def _noise_example(self, rng: np.random.Generator) -> Example:
        """A stream in which nobody speaks: recorded noise or faint hiss."""
        n_samples = int(rng.uniform(3, 15) * SAMPLE_RATE)
        if rng.random() < 0.7:
            audio = self._noise(n_samples, rng) * np.float32(10 ** (rng.uniform(-30, 0) / 20))
        else:
            audio = rng.standard_normal(n_samples).astype(np.float32) * np.float32(
                10 ** rng.uniform(-5, -1.5)
            )
        audio = audio.clip(-1, 1).astype(np.float32)
        return Example(audio, audio, self._prefix(""), (), np.zeros(0))


def _read(utterance: Utterance) -> np.ndarray | None:
    """An utterance's audio; a broken file is reported and left out."""
    try:
        return load_audio(utterance)
    except AudioError as error:
        warnings.warn(str(error), stacklevel=2)
        return None


def _chains(utterances: Sequence[Utterance]) -> list[list[Utterance]]:
    """Runs of utterances that one speaker said one after the other, all with or all without text."""
    chains: list[list[Utterance]] = []
    for utterance in utterances:
        last = chains[-1][-1] if chains else None
        if last and _recording(last) == _recording(utterance):
            chains[-1].append(utterance)
        else:
            chains.append([utterance])
    return chains


def _recording(utterance: Utterance) -> tuple[object, ...]:
    chapter = utterance.id.rsplit("-", 1)[0] if utterance.set == "librispeech" else utterance.speaker
    return utterance.set, utterance.speaker, chapter, utterance.text is None


def _length_s(item: Item) -> float:
    return sum(u.duration_s + MAX_GAP_S / 2 for u in item.utterances) or 9.0


def _nondecreasing(due: np.ndarray) -> np.ndarray:
    """Let later tokens pull earlier ones forward, so that a mark is never due after the next word."""
    filled = np.where(np.isnan(due), np.inf, due)
    forward = np.minimum.accumulate(filled[::-1])[::-1]
    return np.where(np.isnan(due), np.nan, forward)


def _keep_start(audio: np.ndarray, words: list[SaidWord], speed: float) -> tuple[np.ndarray, list[SaidWord]]:
    """Drop what would pass the end of Whisper's 30 s window; words keep times before the speed change."""
    if len(audio) <= MAX_SAMPLES:
        return audio, words
    limit_s = MAX_SAMPLES / SAMPLE_RATE * speed
    kept = [word for word in words if word.end_s < limit_s - 0.5]
    if kept and len(kept) < len(words):
        limit_s = min(limit_s, (kept[-1].end_s + words[len(kept)].start_s) / 2)
    return audio[: int(limit_s / speed * SAMPLE_RATE)], kept


def _cut_start(
    audio: np.ndarray, words: list[SaidWord], prompt: str, rng: np.random.Generator
) -> tuple[np.ndarray, list[SaidWord], str]:
    """Let the stream begin at a word, as after re-anchoring; the words before it join the prompt."""
    candidates = [
        i for i, word in enumerate(words) if i > 0 and word.start_s < 0.5 * len(audio) / SAMPLE_RATE
    ]
    if not candidates:
        return audio, words, prompt
    first = int(rng.choice(candidates))
    at = int(max(words[first].start_s - rng.uniform(0.0, 0.15), words[first - 1].end_s - 0.05) * SAMPLE_RATE)
    shift = at / SAMPLE_RATE
    moved = [replace(w, start_s=w.start_s - shift, end_s=w.end_s - shift) for w in words[first:]]
    return audio[at:], moved, " ".join([prompt, *(w.word for w in words[:first])]).strip()
