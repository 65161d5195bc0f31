"""Training streams are drawn reproducibly and keep words and audio together through every change."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from whisper.tokenizer import get_tokenizer

from training.alignment import AlignedUtterance
from training.config import DataConfig
from training.dataset import MAX_SAMPLES, Example, StreamDataset
from training.manifest import Utterance, WordTime

TOKENIZER = get_tokenizer(multilingual=False)
TONE_S = 0.2


def _utterance(
    folder: Path, index: int, seconds: float, *, text: bool = True
) -> tuple[Utterance, AlignedUtterance]:
    """Silence with a tone burst that ends where each word ends."""
    samples = np.zeros(int(seconds * 16_000), np.float32)
    words = []
    for k in range(1, int(seconds)):
        at = slice(int((k - TONE_S) * 16_000), k * 16_000)
        samples[at] = 0.3 * np.sin(2 * np.pi * 440 * np.arange(at.stop - at.start) / 16_000)
        words.append(WordTime(f"word{k}," if k % 3 == 0 else f"word{k}", k - TONE_S, float(k)))
    path = folder / f"s-c-{index:04}.wav"
    soundfile.write(path, samples, 16_000)
    content = " ".join(w.word for w in words)
    utterance = Utterance(path.stem, path, seconds, content if text else None, "s", "librispeech", index + 1)
    return utterance, AlignedUtterance(path.stem, content, tuple(words))


@pytest.fixture
def dataset(tmp_path: Path):  # noqa: ANN201
    pairs = [_utterance(tmp_path, i, 4.0 + i % 5) for i in range(12)]
    mute, _ = _utterance(tmp_path, 90, 5.0, text=False)
    (tmp_path / "s-c-0099.wav").write_bytes(b"broken")
    broken = Utterance("s-c-0099", tmp_path / "s-c-0099.wav", 3.0, None, "s", "librispeech", 99)

    def build(seed: int = 1, n_replayed: int = 0, **settings: object) -> StreamDataset:
        config = DataConfig(tmp_path, tmp_path, batch_s=60.0, **settings)  # type: ignore[arg-type]
        spoken = [u for u, _ in pairs]
        return StreamDataset(
            config,
            utterances=[*spoken[: len(spoken) - n_replayed], mute, broken],
            replayed=spoken[len(spoken) - n_replayed :],
            aligned={a.id: a for _, a in pairs},
            noises=[mute],
            tokenizer=TOKENIZER,
            margin_s=0.0,
            seed=seed,
        )

    return build


@pytest.mark.filterwarnings("ignore:.*not audio")
def test_same_seed_same_data(dataset) -> None:  # noqa: ANN001
    """A resumed run sees what it would have seen; another epoch or seed is another draw."""
    first, again = dataset(), dataset()
    assert first.plan(3) == again.plan(3)
    assert first.plan(3) != first.plan(4)
    assert first.plan(3) != dataset(seed=2).plan(3)
    item = first.plan(3)[0][0]
    a, b = first.load(item), again.load(item)
    assert np.array_equal(a.noisy, b.noisy)
    assert a.tokens == b.tokens


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_general_recordings_are_replayed(dataset, share: float) -> None:  # noqa: ANN001
    """Their share of an epoch is what is asked for, and none is left out for long."""
    settings = {"n_replayed": 6, "replay_share": share, "noise_only_share": 0.0, "short_share": 1.0}
    data = dataset(**settings)
    seconds: dict[bool, float] = {True: 0.0, False: 0.0}
    seen = set()
    for epoch in range(20):
        used = [u for batch in data.plan(epoch) for item in batch for u in item.utterances]
        own = [u for u in used if u.line <= 6 or u.line > 90]
        assert len(own) == len({u.id for u in own}) == 8
        for utterance in used:
            seconds[utterance not in own] += utterance.duration_s
            seen.add(utterance.id)
    assert len(seen) == 14
    assert seconds[True] / sum(seconds.values()) == pytest.approx(share, abs=0.07)
    assert data.plan(0) == dataset(**settings).plan(0)


def test_an_epoch_holds_every_utterance_once(dataset) -> None:  # noqa: ANN001
    """Joining and batching lose nothing and respect the batch limit."""
    plan = dataset().plan(0)
    used = [u.id for batch in plan for item in batch for u in item.utterances]
    assert len(used) == len(set(used)) == 14


def _bursts_end_s(example: Example) -> list[float]:
    """Times at which the tone stops."""
    loud = np.abs(example.clean) > 0.15 * np.abs(example.clean).max()
    envelope = np.convolve(loud, np.ones(400), "same") > 0
    return [float(i) / 16_000 - 0.0125 for i in np.flatnonzero(np.diff(envelope.astype(int)) == -1)]


@pytest.mark.filterwarnings("ignore:.*not audio")
@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_words_are_due_when_they_end(dataset, speed: float) -> None:  # noqa: ANN001
    """Through joining, gaps, cut starts and speed changes a word's time stays on its sound."""
    data = dataset(speeds=(speed,), noise_share=0.0, cut_share=0.5)
    checked = 0
    for item in (item for batch in data.plan(0) for item in batch):
        example = data.load(item)
        assert len(example.clean) == len(example.noisy) <= MAX_SAMPLES
        if not example.tokens:
            continue
        text = TOKENIZER.decode(list(example.tokens)).split()
        ends = [
            example.due_s[i]
            for i, token in enumerate(example.tokens)
            if i + 1 == len(example.tokens)
            or TOKENIZER.decode([example.tokens[i + 1]]).startswith((" ", ","))
            if TOKENIZER.decode([token]) != ","
        ]
        assert len(ends) == len(text)
        heard = _bursts_end_s(example)[-len(ends) :]
        assert np.allclose(ends, heard, atol=0.03)
        checked += len(ends)
    assert checked > 20


@pytest.mark.filterwarnings("ignore:.*not audio")
def test_marks_wait_but_never_past_the_next_word(dataset) -> None:  # noqa: ANN001
    """A comma is due a little after its word; due times never decrease."""
    data = dataset(noise_share=0.0, cut_share=0.0, speeds=(1.0,))
    for item in (item for batch in data.plan(0) for item in batch):
        due = data.load(item).due_s
        assert (np.diff(due) >= 0).all()


def test_noise_streams_want_nothing(dataset) -> None:  # noqa: ANN001
    """Streams without speech have known, empty text."""
    data = dataset(noise_only_share=1.0)
    item = next(item for batch in data.plan(0) for item in batch if not item.utterances)
    example = data.load(item)
    assert example.tokens == ()
    assert len(example.noisy) > 16_000


@pytest.mark.filterwarnings("ignore:.*not audio")
def test_broken_audio_is_left_out_with_a_warning(dataset) -> None:  # noqa: ANN001
    """Nothing bad stops the rest."""
    data = dataset()
    item = next(i for b in data.plan(0) for i in b if any(u.id == "s-c-0099" for u in i.utterances))
    with pytest.warns(UserWarning, match="s-c-0099"):
        data.load(item)
