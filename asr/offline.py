"""The original Whisper on a whole piece of audio: second pass, language detection, reference transcripts."""

from __future__ import annotations

import numpy as np
import torch
import whisper
from torch import Tensor
from whisper.model import Whisper
from whisper.tokenizer import Tokenizer

from asr.decoder import Decoder, DecoderJob, FrameCache
from asr.events import SAMPLE_RATE
from asr.words import Token, align_tokens

WINDOW_SAMPLES = 30 * SAMPLE_RATE  # Whisper's own window; shorter audio is padded with silence
MAX_COMPRESSION = 2.4  # a text that shrinks more goes round in circles (Whisper's own threshold)


def transcribe(model: Whisper, samples: np.ndarray) -> str:
    """Whisper's greedy text of audio of any length.

    Args:
        model: The original weights.
        samples: Float32 mono audio at 16 kHz, ``[N]``.

    Returns:
        The text without surrounding blanks.
    """
    if len(samples) == 0:
        return ""
    language = None if model.is_multilingual else "en"
    if len(samples) <= WINDOW_SAMPLES:
        options = whisper.DecodingOptions(language=language, without_timestamps=True, fp16=False)
        return whisper.decode(model, _padded_mel(model, samples), options).text.strip()
    whole = whisper.transcribe(
        model, samples, language=language, temperature=0.0, fp16=False, condition_on_previous_text=False
    )
    return str(whole["text"]).strip()


def detect_language(model: Whisper, samples: np.ndarray) -> str:
    """Code of the language most likely spoken in up to 30 s of audio."""
    _, probabilities = whisper.detect_language(model, _padded_mel(model, samples))
    return max(probabilities, key=probabilities.get)


def retranscribe(
    model: Whisper, tokenizer: Tokenizer, samples: np.ndarray, *, origin: int
) -> list[Token] | None:
    """Tokens with times of a segment, from the original Whisper.

    Args:
        model: The original weights.
        tokenizer: In the stream's language.
        samples: Float32 audio of the segment, at most 30 s, ``[N]``.
        origin: Sample of the stream at which it starts.

    Returns:
        The tokens, or None where Whisper went round in circles.
    """
    language = tokenizer.language or "en"
    options = whisper.DecodingOptions(language=language, without_timestamps=True, fp16=False)
    result = whisper.decode(model, _padded_mel(model, samples), options)
    if result.compression_ratio > MAX_COMPRESSION:
        return None
    features, tokens = result.audio_features, result.tokens
    return _align(model, tokenizer, features, tokens, n_samples=len(samples), origin=origin)


def _align(
    model: Whisper, tokenizer: Tokenizer, features: Tensor, ids: list[int], *, n_samples: int, origin: int
) -> list[Token]:
    decoder = Decoder(model.decoder, model.alignment_heads)
    prefix = list(tokenizer.sot_sequence_including_notimestamps)
    tokens = torch.tensor([[*prefix, *ids]], device=features.device)
    cross = FrameCache(features[None].float(), len(features))
    job = DecoderJob(tokens, decoder.new_self_cache(), cross, n_logits=len(ids) + 1)
    output = decoder.step([job])[0]
    logprobs = output.logits[0, :-1].log_softmax(-1).gather(1, tokens[0, len(prefix) :, None])[:, 0].tolist()
    plain = [Token(token, logprob, origin) for token, logprob in zip(ids, logprobs, strict=True)]
    n_frames = max(1, -(-n_samples * features.shape[0] // WINDOW_SAMPLES))
    weights = output.attention[0, :, len(prefix) - 1 :, :n_frames]
    return align_tokens(plain, weights, start=origin, origin=origin)


def _padded_mel(model: Whisper, samples: np.ndarray) -> Tensor:
    padded = whisper.pad_or_trim(np.asarray(samples, dtype=np.float32), WINDOW_SAMPLES)
    return whisper.log_mel_spectrogram(padded, model.dims.n_mels).to(model.device)
