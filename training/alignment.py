"""Weak word times from Whisper itself: no forced-alignment tool is needed.

The transcript is teacher-forced through offline Whisper; the alignment heads' cross-attention, followed by
dynamic time warping, gives each word an end. Utterances of one speaker share a
30 s window, because Whisper's cost is that of the window. The same pass lets the teacher transcribe the
window, so that a transcript without case or punctuation takes the teacher's spelling wherever both agree.

Run as ``python -m training.alignment MANIFEST -o ALIGNED.jsonl``; it resumes where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from whisper.audio import N_SAMPLES, log_mel_spectrogram, pad_or_trim
from whisper.model import Whisper
from whisper.tokenizer import Tokenizer, get_tokenizer

from asr.decoder import Decoder, DecoderJob, FrameCache
from asr.errors import AudioError
from asr.events import SAMPLE_RATE
from asr.words import BIAS_FRAMES, Vocabulary, token_starts
from training.manifest import Utterance, WordTime, load_audio, read_manifest

FRAME_S = 0.02  # one encoder frame
GAP_S = 0.5  # silence between utterances that share a window
MIN_SPEECH_DB = -25.0  # frames quieter than this, relative to the recording's loud frames, are pauses


@dataclass(frozen=True)
class AlignedUtterance:
    """A transcript in the teacher's spelling, with weak word times in seconds of the utterance."""

    id: str
    text: str
    words: tuple[WordTime, ...]


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


def spell_like_teacher(reference: str, teacher: str) -> str:
    """Give ``reference`` the teacher's case and punctuation wherever their words agree.

    A reference that already has lower-case letters is returned as it is. Words are compared in
    lower case without punctuation; a word that the teacher heard differently is kept, in lower case.
    """
    if reference != reference.upper():
        return reference
    ours = reference.lower().split()
    theirs = teacher.split()
    bare = ["".join(c for c in word.lower() if c.isalnum() or c == "'").strip("'") for word in theirs]
    spelled = list(ours)
    for i, j in _matching_pairs([word.strip("'") for word in ours], bare):
        spelled[i] = theirs[j].strip('"“”()[]')
    text = " ".join(word for word in spelled if word)
    text = text.replace(" i ", " I ").replace(" i'", " I'")
    return text[:1].upper() + text[1:]


def _matching_pairs(a: Sequence[str], b: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Index pairs of equal items on a minimum edit path from ``a`` to ``b``."""
    cost = np.zeros((len(a) + 1, len(b) + 1), dtype=np.int32)
    cost[:, 0] = np.arange(len(a) + 1)
    cost[0] = np.arange(len(b) + 1)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            cost[i, j] = min(cost[i - 1, j - 1] + (x != y), cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1] and cost[i, j] == cost[i - 1, j - 1]:
            yield i - 1, j - 1
            i, j = i - 1, j - 1
        elif cost[i, j] == cost[i - 1, j - 1] + 1:
            i, j = i - 1, j - 1
        elif cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1


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


def encode_padded(model: Whisper, batch: Sequence[np.ndarray]) -> Tensor:
    """Original encoder features ``[B, 1500, D]`` of signals padded to 30 s."""
    device = model.device
    mels = [
        log_mel_spectrogram(pad_or_trim(torch.from_numpy(x).to(device), N_SAMPLES), model.dims.n_mels)
        for x in batch
    ]
    with torch.no_grad(), autocast(device):
        return model.encoder(torch.stack(mels)).float()


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


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Mixed precision in bfloat16 on ``device``."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


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
    model: Whisper, tokenizer: Tokenizer, windows: Sequence[Window]
) -> Iterator[AlignedUtterance]:
    """Spell and align every utterance of some windows, in order."""
    features = encode_padded(model, [window.samples for window in windows])
    decoded = transcribe_greedily(model, tokenizer, features)
    for window, feature, teacher in zip(windows, features, decoded, strict=True):
        texts = _spell_window(window, teacher)
        words = [word for text in texts for word in text.split()]
        times = _align_features(model, tokenizer, feature, window.samples, words)
        cursor = 0
        for utterance, start, text in zip(window.utterances, window.starts_s, texts, strict=True):
            mine = times[cursor : cursor + len(text.split())]
            cursor += len(mine)
            local = tuple(
                WordTime(
                    w.word,
                    round(min(max(w.start_s - start, 0.0), utterance.duration_s), 3),
                    round(min(max(w.end_s - start, 0.0), utterance.duration_s), 3),
                    w.confidence,
                )
                for w in mine
            )
            yield AlignedUtterance(utterance.id, text, local)


def _spell_window(window: Window, teacher: str) -> list[str]:
    """The utterances' texts in the teacher's spelling; the teacher heard them as one text."""
    references = [utterance.text or "" for utterance in window.utterances]
    if all(reference != reference.upper() for reference in references):
        return references
    spelled = spell_like_teacher(" ".join(references).upper(), teacher).split()
    texts, cursor = [], 0
    for reference in references:
        n_words = len(reference.split())
        text = " ".join(spelled[cursor : cursor + n_words])
        cursor += n_words
        texts.append(reference if reference != reference.upper() else text[:1].upper() + text[1:])
    return texts


def read_aligned(path: Path) -> dict[str, AlignedUtterance]:
    """Read what :func:`align_manifest` wrote, keyed by utterance id."""
    aligned = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        words = tuple(WordTime(*word) for word in record["words"])
        aligned[record["id"]] = AlignedUtterance(record["id"], record["text"], words)
    return aligned


def align_manifest(model: Whisper, manifest: Path, output: Path, *, batch_size: int = 8) -> None:
    """Align every utterance with a transcript; append to ``output`` what it does not hold yet."""
    done = set(read_aligned(output)) if output.exists() else set()
    todo = [u for u in read_manifest(manifest) if u.text and u.id not in done]
    tokenizer = teacher_tokenizer(model)
    groups = pack_windows(todo)
    with output.open("a", encoding="utf-8") as file, tqdm(total=len(todo), unit="utt") as bar:
        for first in range(0, len(groups), batch_size):
            windows = [build_window(group) for group in groups[first : first + batch_size]]
            for aligned in align_group(model, tokenizer, windows):
                words = [[w.word, w.start_s, w.end_s, w.confidence] for w in aligned.words]
                record = {"id": aligned.id, "text": aligned.text, "words": words}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                bar.update()
            file.flush()


def main() -> None:
    """Command line of ``python -m training.alignment``."""
    from asr.checkpoint import load_checkpoint

    parser = argparse.ArgumentParser(description="Weak word times for a manifest, from Whisper itself.")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="tiny.en", help="offline Whisper that aligns (default: tiny.en)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    model = load_checkpoint(args.model, device=args.device).model
    align_manifest(model, args.manifest, args.output, batch_size=args.batch_size)


if __name__ == "__main__":
    main()
