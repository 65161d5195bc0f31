"""The recognisers that are compared, each behind the same three calls.

Every class imports its library when it is made: each lives in an environment that has it. Settings are the
library's defaults or what its documentation recommends for streaming, and each class says them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ours import Foresound, Foresound8, Foresound16, ForesoundTransducer, ForesoundTransducer16
from system import SAMPLE_RATE, Given, System


class LocalAgreement:
    """Decode again and again what is not committed yet; commit what two runs in a row agree on.

    LocalAgreement-2 as in Macháček et al., "Turning Whisper into real-time transcription system"
    (arXiv 2307.14743), with a buffer that is cut at the last committed word once it is 15 s long.
    """

    step_s = 1.0
    n_streams = 1
    settings = ""
    _KEEP_S = 15.0
    _OVERLAP_S = 0.1

    def __init__(self, decode: Callable[[np.ndarray, str], Sequence[tuple[str, float, float]]]) -> None:
        """Take what decodes samples after a prompt into words with start and end in seconds."""
        self._decode = decode
        self.begin()

    def begin(self) -> None:
        """Forget everything."""
        self._buffer = np.zeros(0, dtype=np.float32)
        self._offset_s = self._committed_s = 0.0
        self._committed: list[str] = []
        self._before: list[tuple[str, float, float]] = []  # the last run's words that are not committed
        self._prompt = ""

    def hear(self, samples: np.ndarray) -> tuple[str, str]:
        """Decode the buffer and compare with the run before."""
        self._buffer = np.append(self._buffer, samples)
        words = [
            (word, start + self._offset_s, end + self._offset_s)
            for word, start, end in self._decode(self._buffer, self._prompt)
        ]
        new = [each for each in words if each[1] > self._committed_s - self._OVERLAP_S]
        n_agreed = 0
        for (now, _, _), (then, _, _) in zip(new, self._before, strict=False):
            if now != then:
                break
            n_agreed += 1
        for word, _, end in new[:n_agreed]:
            self._committed.append(word)
            self._committed_s = end
        self._before = new[n_agreed:]
        if len(self._buffer) > self._KEEP_S * SAMPLE_RATE and self._committed_s > self._offset_s:
            self._buffer = self._buffer[round((self._committed_s - self._offset_s) * SAMPLE_RATE) :]
            self._offset_s = self._committed_s
            self._prompt = "".join(self._committed)[-200:]
        return "".join(self._committed), "".join(word for word, _, _ in self._before)

    def finish(self) -> str:
        """What the last run heard counts."""
        return "".join(self._committed) + "".join(word for word, _, _ in self._before)


class FasterWhisper(LocalAgreement):
    """faster-whisper, decoding again."""

    def __init__(self, given: Given) -> None:
        """Load the CTranslate2 folder in 8 bits, as the documentation advises for processors."""
        from faster_whisper import WhisperModel

        whisper = WhisperModel(given.ct2, device="cpu", compute_type="int8")
        self.settings = "LocalAgreement-2, int8, beam 5 (its default), buffer 15 s"

        def decode(samples: np.ndarray, prompt: str) -> list[tuple[str, float, float]]:
            segments, _ = whisper.transcribe(
                samples, language="en", initial_prompt=prompt, word_timestamps=True
            )
            return [(word.word, word.start, word.end) for segment in segments for word in segment.words or ()]

        super().__init__(decode)


class OpenaiWhisper(LocalAgreement):
    """openai-whisper, decoding again."""

    def __init__(self, given: Given) -> None:
        """Load the original checkpoint."""
        import whisper

        network = whisper.load_model(given.pt)
        network.set_alignment_heads(whisper._ALIGNMENT_HEADS[given.model])
        self.settings = "LocalAgreement-2, float32, greedy (its default), buffer 15 s"

        def decode(samples: np.ndarray, prompt: str) -> list[tuple[str, float, float]]:
            result = whisper.transcribe(
                network, samples, language="en", initial_prompt=prompt, word_timestamps=True, fp16=False
            )
            words = [word for segment in result["segments"] for word in segment["words"]]
            return [(word["word"], word["start"], word["end"]) for word in words]

        super().__init__(decode)


class WhisperLiveKit:
    """What WhisperLiveKit's policies share: its online processors, without server and voice detection."""

    step_s = 0.1  # --min-chunk-size
    n_streams = 1
    settings = ""
    _asr: Any
    _processor: Callable[[Any], Any]

    def begin(self) -> None:
        """Make a processor, as its server does for each session."""
        self._online = self._processor(self._asr)
        self._committed = ""
        self._n_heard = 0

    def hear(self, samples: np.ndarray) -> tuple[str, str]:
        """Insert the audio, then process, as its server does."""
        self._n_heard += len(samples)
        self._online.insert_audio_chunk(samples, self._n_heard / SAMPLE_RATE)
        tokens, _ = self._online.process_iter()
        self._committed += "".join(token.text for token in tokens)
        return self._committed, self._online.get_buffer().text or ""

    def finish(self) -> str:
        """What its end of a stream releases."""
        tokens, _ = self._last()
        return self._committed + "".join(token.text for token in tokens)

    def _last(self) -> Any:
        return self._online.finish()


class WlkLocalAgreement(WhisperLiveKit):
    """Its LocalAgreement over faster-whisper, which is its backend where that is installed."""

    def __init__(self, given: Given) -> None:
        """Load as its engine does."""
        from whisperlivekit.config import WhisperLiveKitConfig
        from whisperlivekit.local_agreement.online_asr import OnlineASRProcessor
        from whisperlivekit.local_agreement.whisper_online import backend_factory

        config = WhisperLiveKitConfig(lan="en")
        self.settings = (
            "LocalAgreement, faster-whisper (compute type auto), beam 5, "
            f"buffer {config.buffer_trimming_sec:g} s by segment"
        )
        self._asr = backend_factory(
            backend="faster-whisper",
            lan="en",
            model_size=None,
            model_cache_dir=None,
            model_dir=None,
            model_path=given.ct2,
            lora_path=None,
            direct_english_translation=False,
            buffer_trimming=config.buffer_trimming,
            buffer_trimming_sec=config.buffer_trimming_sec,
            confidence_validation=config.confidence_validation,
            warmup_file=False,
        )
        self._processor = OnlineASRProcessor


class WlkSimulStreaming(WhisperLiveKit):
    """Its SimulStreaming (AlignAtt) policy with the encoder of faster-whisper, its default and its advice."""

    def __init__(self, given: Given) -> None:
        """Load as its engine does."""
        import whisper
        from whisperlivekit.config import WhisperLiveKitConfig
        from whisperlivekit.simul_whisper import SimulStreamingASR
        from whisperlivekit.simul_whisper.backend import SimulStreamingOnlineProcessor

        config = WhisperLiveKitConfig(lan="en")
        names = (
            *(
                "warmup_file",
                "min_chunk_size",
                "model_size",
                "model_cache_dir",
                "model_dir",
                "lora_path",
                "lan",
            ),
            *("direct_english_translation", "disable_fast_encoder", "frame_threshold", "beams"),
            *("decoder_type", "audio_max_len", "audio_min_len", "cif_ckpt_path", "never_fire"),
            *("init_prompt", "static_init_prompt", "max_context_tokens"),
        )
        settings = {name: getattr(config, name) for name in names} | {"warmup_file": False}
        self._asr = SimulStreamingASR(
            **settings,
            model_path=None,
            decoder_model_path=given.pt,
            encoder_model_path=given.ct2,
            custom_alignment_heads=whisper._ALIGNMENT_HEADS[given.model].decode(),
            backend="faster-whisper",
        )
        self.settings = f"SimulStreaming, frame threshold {config.frame_threshold}, beams {config.beams}"
        self._processor = SimulStreamingOnlineProcessor

    def _last(self) -> Any:
        return self._online.process_iter(is_last=True)


class Moonshine:
    """moonshine-voice with the tiny English model that its package ships."""

    step_s = 0.5  # its update interval
    n_streams = 1

    def __init__(self, given: Given) -> None:
        """Load the packaged model."""
        from moonshine_voice import ModelArch, Transcriber, get_assets_path

        folder = get_assets_path() / "tiny-en"
        never = float("inf")  # hear() asks for updates
        self._transcriber = Transcriber(folder, ModelArch.TINY, update_interval=never)
        self.settings = "its own tiny-en model (not Whisper)"

    def begin(self) -> None:
        """Open a stream."""
        self._stream = self._transcriber.create_stream()
        self._stream.start()

    def hear(self, samples: np.ndarray) -> tuple[str, str]:
        """Add audio; lines that are complete are committed."""
        self._stream.add_audio(samples.tolist(), SAMPLE_RATE)
        return self._lines(self._stream.update_transcription())

    def finish(self) -> str:
        """Stop the stream."""
        committed, draft = self._lines(self._stream.stop())
        self._stream.close()
        return committed + draft

    @staticmethod
    def _lines(transcript: Any) -> tuple[str, str]:
        lines = [(f" {line.text}", bool(line.is_complete)) for line in transcript.lines]
        n_done = next((i for i, (_, is_done) in enumerate(lines) if not is_done), len(lines))
        return "".join(t for t, _ in lines[:n_done]), "".join(t for t, _ in lines[n_done:])


class PocketSphinx:
    """pocketsphinx with the US English model that its package ships."""

    step_s = 0.1
    n_streams = 1
    settings = "its own US English model (not Whisper)"

    def __init__(self, given: Given) -> None:
        """Load the packaged model."""
        from pocketsphinx import Decoder

        self._decoder = Decoder(samprate=SAMPLE_RATE)

    def begin(self) -> None:
        """Open an utterance."""
        self._decoder.start_utt()

    def hear(self, samples: np.ndarray) -> tuple[str, str]:
        """Process audio; nothing is certain before the end."""
        self._decoder.process_raw((samples * 32767).clip(-32768, 32767).astype(np.int16).tobytes())
        return "", self._text()

    def finish(self) -> str:
        """End the utterance."""
        self._decoder.end_utt()
        return self._text()

    def _text(self) -> str:
        best = self._decoder.hyp()
        return best.hypstr if best else ""


SYSTEMS: dict[str, Callable[[Given], System]] = {
    "foresound": Foresound,
    "foresound-8": Foresound8,
    "foresound-16": Foresound16,
    "foresound-transducer": ForesoundTransducer,
    "foresound-transducer-16": ForesoundTransducer16,
    "wlk-localagreement": WlkLocalAgreement,
    "wlk-simulstreaming": WlkSimulStreaming,
    "faster-whisper": FasterWhisper,
    "openai-whisper": OpenaiWhisper,
    "moonshine": Moonshine,
    "pocketsphinx": PocketSphinx,
}
