"""Weak word times from Whisper itself: no forced-alignment tool is needed.

The transcript is teacher-forced through offline Whisper; the alignment heads' cross-attention, followed by
dynamic time warping, gives each word an end. Utterances of one speaker share a
30 s window, because Whisper's cost is that of the window. The same pass lets the teacher transcribe the
window, so that a transcript without case or punctuation takes the teacher's spelling wherever both agree.

``foresound align`` (:mod:`training.align`) does this for whole manifests.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from whisper.audio import N_SAMPLES, log_mel_spectrogram, pad_or_trim
from whisper.model import Whisper
from whisper.tokenizer import Tokenizer, get_tokenizer

from asr.decoder import Decoder, DecoderJob, FrameCache
from asr.errors import AudioError
from asr.events import SAMPLE_RATE
from asr.words import BIAS_FRAMES, Vocabulary, token_starts
from training.judge import Limits, Share, find_wrong, share_out
from training.manifest import ManifestError, Utterance, WordTime, json_lines, load_audio
from training.spelling import bare, matching_pairs, spell_utterances

FRAME_S = 0.02  # one encoder frame
GAP_S = 0.5  # silence between utterances that share a window
MIN_SPEECH_DB = -25.0  # frames quieter than this, relative to the recording's loud frames, are pauses


@dataclass(frozen=True)
class AlignedUtterance:
    """A transcript in the teacher's spelling, with weak word times in seconds of the utterance."""

    id: str
    text: str
    words: tuple[WordTime, ...]
    distance: float = 0.0
    """Edits per word between the transcript and what the teacher hears."""
    wrong: str | None = None
    """Why the transcript is not to be trained on, None if it may be."""

    @property
    def confidence(self) -> float:
        """Mean probability of the words to the teacher; 1 without words."""
        return float(np.mean([word.confidence for word in self.words])) if self.words else 1.0

    def to_json(self) -> str:
        """One line of a file that :func:`read_aligned` reads."""
        words = [[w.word, w.start_s, w.end_s, w.confidence] for w in self.words]
        record = {"id": self.id, "text": self.text, "words": words, "distance": round(self.distance, 4)}
        if self.wrong is not None:
            record["wrong"] = self.wrong
        return json.dumps(record, ensure_ascii=False)


@dataclass(frozen=True)
class Window:
    """Utterances laid out in one 30 s window."""

    utterances: tuple[Utterance, ...]
    starts_s: tuple[float, ...]
    samples: np.ndarray  # float32 [N_SAMPLES at most]


def pack_windows(utterances: Iterable[Utterance], *, max_s: float = 29.0) -> list[list[Utterance]]:
    """Group utterances of one speaker, first fit, so that each group fits into a Whisper window."""
    groups: list[list[Utterance]] = []
    room_s: list[float] = []
    of_speaker: dict[str | None, list[int]] = {}
    for utterance in utterances:
        mine = of_speaker.setdefault(utterance.speaker, [])
        fitting = [g for g in mine if utterance.speaker and room_s[g] >= utterance.duration_s]
        if fitting:
            group = fitting[0]
        else:
            group = len(groups)
            mine.append(group)
            groups.append([])
            room_s.append(max_s)
        groups[group].append(utterance)
        room_s[group] -= utterance.duration_s + GAP_S
    return groups


def build_window(group: Sequence[Utterance]) -> Window:
    """Load the utterances of a group and lay them out; a broken file is reported and left out."""
    parts: list[np.ndarray] = []
    used: list[Utterance] = []
    starts: list[float] = []
    n_samples = 0
    for utterance in group:
        try:
            samples = load_audio(utterance)
        except AudioError as error:
            warnings.warn(str(error), stacklevel=2)
            continue
        used.append(utterance)
        starts.append(n_samples / SAMPLE_RATE)
        parts += [samples, np.zeros(int(GAP_S * SAMPLE_RATE), np.float32)]
        n_samples += len(samples) + int(GAP_S * SAMPLE_RATE)
    samples = np.concatenate(parts)[:N_SAMPLES] if parts else np.zeros(0, np.float32)
    return Window(tuple(used), tuple(starts), samples)


def align_words(model: Whisper, samples: np.ndarray, text: str, *, language: str = "en") -> list[WordTime]:
    """Weak times of the words of ``text`` in at most 30 s of audio.

    Args:
        model: The original Whisper (no adapter).
        samples: Float32 mono audio at 16 kHz, shape ``[N]``.
        text: The transcript; words are split at blanks and keep their punctuation.
        language: Spoken language of multilingual models.

    Returns:
        One entry per word, in order; confidence is the mean probability of the word's tokens.
    """
    tokenizer = teacher_tokenizer(model, language)
    features = encode_padded(model, [samples])[0]
    return _align_features(model, tokenizer, features, samples, text.split())


def teacher_tokenizer(model: Whisper, language: str = "en") -> Tokenizer:
    """The tokenizer that fits ``model``."""
    return get_tokenizer(
        model.is_multilingual,
        num_languages=model.num_languages,
        language=language if model.is_multilingual else None,
        task="transcribe" if model.is_multilingual else None,
    )


def encode_padded(model: Whisper, batch: Sequence[np.ndarray], *, precision: str = "bf16") -> Tensor:
    """Original encoder features ``[B, 1500, D]`` of signals padded to 30 s."""
    device = model.device
    mels = [
        log_mel_spectrogram(pad_or_trim(torch.from_numpy(x).to(device), N_SAMPLES), model.dims.n_mels)
        for x in batch
    ]
    # On a processor one window at a time: what the layers say to one another stays in the cache.
    size = 1 if device.type == "cpu" else len(mels)
    with torch.no_grad(), autocast(device, precision):
        return torch.cat(
            [model.encoder(torch.stack(mels[i : i + size])).float() for i in range(0, len(mels), size)]
        )


def transcribe_greedily(
    model: Whisper, tokenizer: Tokenizer, features: Tensor, *, max_tokens: int = 160
) -> list[str]:
    """The original Whisper's greedy text for each of ``features`` ``[B, 1500, D]``."""
    decoder = Decoder(model.decoder, model.alignment_heads)
    prefix = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
    special = [*tokenizer.special_tokens.values(), *tokenizer.non_speech_tokens]
    banned = torch.tensor([token for token in special if token != tokenizer.eot], device=features.device)
    tokens = torch.tensor([prefix] * len(features), device=features.device)
    texts: list[list[int]] = [[] for _ in features]
    open_rows = set(range(len(features)))
    state = decoder.new_self_cache(n_rows=len(features))
    with torch.no_grad():
        cross = FrameCache(features, features.shape[1])
        while open_rows and len(texts[min(open_rows)]) < max_tokens:
            logits = decoder.step([DecoderJob(tokens, state, cross)])[0].logits[:, -1]
            logits[:, banned] = -torch.inf
            tokens = logits.argmax(dim=-1, keepdim=True)
            for row in tuple(open_rows):
                token = int(tokens[row])
                if token == tokenizer.eot:
                    open_rows.remove(row)
                else:
                    texts[row].append(token)
    return [tokenizer.decode(text).strip() for text in texts]


def autocast(device: torch.device, precision: str = "bf16") -> contextlib.AbstractContextManager[object]:
    """Mixed precision on ``device``: ``bf16``, ``fp16``, or ``no``.

    A processor without AVX-512 or better only imitates bf16, more slowly than it computes float32, which it
    then does.
    """
    imitated = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in (
        "DEFAULT",
        "NO AVX",
        "AVX2",
    )
    if precision == "no" or imitated:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def _align_features(
    model: Whisper, tokenizer: Tokenizer, features: Tensor, samples: np.ndarray, words: Sequence[str]
) -> list[WordTime]:
    if not words:
        return []
    word_tokens = [tokenizer.encode(" " + word) for word in words]
    text_tokens = [token for tokens in word_tokens for token in tokens]
    prefix = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
    n_frames = max(1, min(features.shape[0], int(np.ceil(len(samples) / SAMPLE_RATE / FRAME_S))))
    tokens = torch.tensor([[*prefix, *text_tokens, tokenizer.eot]], device=features.device)
    if tokens.shape[1] > model.dims.n_text_ctx:
        raise ValueError(f"{len(text_tokens)} tokens are too many for one window; split the recording")
    decoder = Decoder(model.decoder, model.alignment_heads)
    with torch.no_grad(), autocast(features.device):
        output = decoder.forward(
            tokens,
            decoder.project_frames(features[None]),
            positions=torch.arange(tokens.shape[1], device=tokens.device)[None],
            self_mask=torch.ones(2 * tokens.shape[1:], dtype=torch.bool, device=tokens.device).tril(),
            with_attention=True,
        )
        logits = decoder.logits(output.hidden[0, len(prefix) - 1 : -2])
    assert output.attention is not None
    probabilities = logits.softmax(-1).gather(1, tokens[0, len(prefix) : -1, None]).squeeze(1)
    # Row i looks at what predicts text token i; the last one predicts end-of-text, where the last word ends.
    starts = token_starts(output.attention[0, :, len(prefix) - 1 : -1, :n_frames]) - BIAS_FRAMES
    bounds = np.cumsum([0, *map(len, word_tokens)])
    quiet = _quiet_frames(samples, n_frames)
    vocabulary = Vocabulary(tokenizer)
    times = []
    for i, word in enumerate(words):
        first, last = int(bounds[i]), int(bounds[i + 1])
        confidence = float(probabilities[first:last].mean())
        spoken = first + vocabulary.n_spoken(word_tokens[i])
        start, end = _trim_pause(int(starts[first]), int(starts[spoken]), quiet)
        times.append(WordTime(word, round(start * FRAME_S, 3), round(end * FRAME_S, 3), round(confidence, 4)))
    return times


def _quiet_frames(samples: np.ndarray, n_frames: int) -> np.ndarray:
    """Boolean ``[n_frames]``, True where 20 ms of audio are a pause beside the loud frames."""
    size = int(FRAME_S * SAMPLE_RATE)
    padded = np.zeros(n_frames * size, np.float32)
    padded[: len(samples)] = samples[: n_frames * size]
    power = 10 * np.log10((padded.reshape(n_frames, size) ** 2).mean(axis=1) + 1e-12)
    return np.asarray(power < np.percentile(power, 95) + MIN_SPEECH_DB)


def _trim_pause(start: int, end: int, quiet: np.ndarray) -> tuple[int, int]:
    """Move a word's ends out of the pauses that dynamic time warping lets it swallow."""
    first = max(0, start)
    last = min(max(end, first + 1), len(quiet))
    while last - 1 > first and quiet[last - 1]:
        last -= 1
    while first < last - 1 and quiet[first]:
        first += 1
    return first, last


def align_group(
    model: Whisper,
    tokenizer: Tokenizer,
    windows: Sequence[Window],
    *,
    limits: Limits | None = None,
    forced: Mapping[str, Sequence[WordTime]] | None = None,
    keep_spelling: bool = False,
) -> Iterator[AlignedUtterance]:
    """Spell, judge and align every utterance of some windows.

    Args:
        model: The original Whisper.
        tokenizer: Its.
        windows: From :func:`build_window`.
        limits: When a transcript is wrong; None judges nothing.
        forced: Word times by utterance id from elsewhere; they replace weak ones.
        keep_spelling: Leave plain transcripts as they are.

    Yields:
        One result per utterance. A wrong transcript does not blur the times of those beside it: their window
        is aligned again without it, after the others.
    """
    heard = _hear(model, tokenizer, windows)
    rest: list[Window] = []
    for window, (feature, teacher) in zip(windows, heard, strict=True):
        texts, shares = _spell_window(window, teacher, keep_spelling=keep_spelling)
        found = list(_align_window(model, tokenizer, window, feature, texts, shares))
        reasons = [
            find_wrong(each.text, share, confidence=each.confidence, limits=limits) if limits else None
            for each, share in zip(found, shares, strict=True)
        ]
        wrong = {each.id for each, reason in zip(found, reasons, strict=True) if reason}
        if wrong and len(wrong) < len(found):
            rest.append(build_window([u for u in window.utterances if u.id not in wrong]))
        for each, reason in zip(found, reasons, strict=True):
            if reason or not wrong:
                yield _force(replace(each, wrong=reason), (forced or {}).get(each.id))
    for window, (feature, teacher) in zip(rest, _hear(model, tokenizer, rest), strict=True):
        texts, shares = _spell_window(window, teacher, keep_spelling=keep_spelling)
        for each in _align_window(model, tokenizer, window, feature, texts, shares):
            yield _force(each, (forced or {}).get(each.id))


def _spell_window(window: Window, teacher: str, *, keep_spelling: bool) -> tuple[list[str], list[Share]]:
    """The utterances' texts, spelled like the teacher's or not, and what the teacher heard of each."""
    texts = [utterance.text or "" for utterance in window.utterances]
    texts = texts if keep_spelling else spell_utterances(texts, teacher)
    return texts, share_out(texts, teacher, durations_s=[u.duration_s for u in window.utterances])


def _hear(model: Whisper, tokenizer: Tokenizer, windows: Sequence[Window]) -> list[tuple[Tensor, str]]:
    """Features ``[1500, D]`` and the teacher's text of each window."""
    if not windows:
        return []
    features = encode_padded(model, [window.samples for window in windows])
    return list(zip(features, transcribe_greedily(model, tokenizer, features), strict=True))


def _align_window(
    model: Whisper,
    tokenizer: Tokenizer,
    window: Window,
    feature: Tensor,
    texts: Sequence[str],
    shares: Sequence[Share],
) -> Iterator[AlignedUtterance]:
    """Every utterance of a window with the times of its words in itself."""
    words = [word for text in texts for word in text.split()]
    times = _align_features(model, tokenizer, feature, window.samples, words)
    cursor = 0
    for utterance, start_s, text, share in zip(
        window.utterances, window.starts_s, texts, shares, strict=True
    ):
        mine = times[cursor : cursor + len(text.split())]
        cursor += len(mine)
        local = tuple(
            replace(
                word,
                start_s=round(min(max(word.start_s - start_s, 0.0), utterance.duration_s), 3),
                end_s=round(min(max(word.end_s - start_s, 0.0), utterance.duration_s), 3),
            )
            for word in mine
        )
        yield AlignedUtterance(utterance.id, text, local, share.distance)


def _force(weak: AlignedUtterance, forced: Sequence[WordTime] | None) -> AlignedUtterance:
    """Give words that an aligner timed its times; the others keep weak ones."""
    if not forced:
        return weak
    words = list(weak.words)
    ours, theirs = ([bare(word.word) for word in times] for times in (weak.words, forced))
    for i, j in matching_pairs(ours, theirs):
        words[i] = replace(words[i], start_s=forced[j].start_s, end_s=forced[j].end_s)
    latest = 0.0
    for i, word in enumerate(words):  # weak times between forced ones must not run back
        latest = max(latest, word.end_s)
        words[i] = replace(word, start_s=min(word.start_s, latest), end_s=latest)
    return replace(weak, words=tuple(words))


def read_aligned(path: Path, *, with_wrong: bool = False) -> dict[str, AlignedUtterance]:
    """Read what ``foresound align`` wrote.

    Args:
        path: The file.
        with_wrong: Also give utterances whose transcript was found to be wrong.

    Returns:
        Utterances by id.

    Raises:
        ManifestError: The file cannot be read or a line is wrong.
    """
    aligned = {}
    for line, record in json_lines(path):
        try:
            words = tuple(WordTime(*word) for word in record["words"])
            each = AlignedUtterance(
                record["id"], record["text"], words, record.get("distance", 0.0), record.get("wrong")
            )
        except (KeyError, TypeError) as error:
            raise ManifestError(
                f"{path}:{line}: not a line of foresound align ({error!r}); align the manifest again"
            ) from error
        if with_wrong or each.wrong is None:
            aligned[each.id] = each
    return aligned
