"""Weights that are damaged, foreign or incomplete: one readable line says what was expected and found."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import (
    DIMS,
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
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from whisper.model import ModelDimensions, Whisper, sinusoids

from asr import ctranslate2
from asr.checkpoint import load_checkpoint
from asr.errors import CheckpointError
from asr.weights import POSITIONS


@pytest.fixture(scope="module")
def model() -> Whisper:
    return random_model()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("writer", "file", "expected"),
    [
        (
            "pt",
            ".",
            "expected an openai-whisper checkpoint with 'dims' and 'model_state_dict', found a damaged",
        ),
        ("hugging_face", "model.safetensors", "expected safetensors, found a truncated"),
        (
            "ctranslate2_float16",
            "model.bin",
            "truncated or damaged: variable 'decoder/embeddings/weight' needs",
        ),
    ],
)
def test_truncated_files(writer: str, file: str, expected: str, model: Whisper, tmp_path: Path) -> None:
    """Half a file is called so, in each format."""
    path = WRITERS[writer](tmp_path, model)
    truncate(path / file if path.is_dir() else path)
    assert expected in load_error(path)


def save_with_code(path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(path.with_suffix(".ran")),)

    torch.save({"dims": Code(), "model_state_dict": {}}, path)


FOREIGN_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("hello, world\n" * 99), "found a damaged or foreign file"),
    "empty": (lambda path: path.write_bytes(b""), "found a damaged or foreign file"),
    "wav": (lambda path: path.write_bytes(b"RIFF\0\0\0\0WAVEfmt " + bytes(99)), "a damaged or foreign file"),
    "tensor": (lambda path: torch.save(torch.zeros(3), path), "found Tensor"),
    "state": (lambda path: torch.save({"b": 1, "a": torch.zeros(1)}, path), "found a, b"),
    "nothing": (lambda path: torch.save({}, path), "found nothing"),
    "types": (lambda path: torch.save({"dims": 1, "model_state_dict": 2}, path), "found other types"),
    "dims": (lambda path: torch.save({"dims": {"n_mels": 80}, "model_state_dict": {}}, path), "n_vocab"),
    "code": (save_with_code, "found objects that need code"),
}


@pytest.mark.parametrize("kind", FOREIGN_FILES)
def test_foreign_files_as_pt(kind: str, tmp_path: Path) -> None:
    """What is not an openai-whisper checkpoint is refused, and code in it never runs."""
    write, expected = FOREIGN_FILES[kind]
    path = tmp_path / "model.pt"
    write(path)
    assert expected in load_error(path)
    assert not path.with_suffix(".ran").exists()


def test_foreign_ctranslate2_models(model: Whisper, tmp_path: Path) -> None:
    """Another format version, another kind of model and another file are told apart."""
    folder = write_ctranslate2(tmp_path / "ct2", model)
    file = folder / "model.bin"
    variables = {"encoder/num_heads": np.array(2, np.int16)}
    file.write_bytes(ctranslate2_bytes(variables, version=9))
    assert "expected binary version 4 to 6 in its first 4 bytes, found 9" in load_error(folder)
    file.write_bytes(ctranslate2_bytes(variables, spec_name="TransformerSpec"))
    assert "kind 'TransformerSpec', expected 'WhisperSpec'" in load_error(folder)
    file.write_bytes(b"PK\3\4 a zip file")
    assert "is not a CTranslate2 model" in load_error(folder)
    file.write_bytes(ctranslate2_bytes(variables))
    assert "'decoder/projection/weight' shares 'decoder/embeddings/weight'" in load_error(folder)


def test_folders_that_lack_something(model: Whisper, tmp_path: Path) -> None:
    """Each missing file of a folder is named."""
    folder = write_hugging_face(tmp_path / "hf", model, n_shards=2)
    (folder / "model-1.safetensors").unlink()
    assert "model-1.safetensors is missing: model.safetensors.index.json names it" in load_error(folder)
    (folder / "config.json").unlink()
    assert "config.json is missing" in load_error(folder)
    folder = write_ctranslate2(tmp_path / "ct2", model)
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read: expected JSON" in load_error(folder)
    (folder / "config.json").unlink()
    assert "config.json is missing" in load_error(folder)
    assert f"pass the folder {folder}" in load_error(folder / "model.bin")
    (folder / "model.bin").rename(folder / "pytorch_model.bin")
    assert re.search(r"expected model\.safetensors .* found pytorch_model\.bin", load_error(folder))
    (folder / "pytorch_model.bin").unlink()
    assert "found nothing" in load_error(folder)


def test_hugging_face_configs_that_do_not_fit(model: Whisper, tmp_path: Path) -> None:
    """A config of another model, without heads, or with other sizes or heads is refused."""
    folder = write_hugging_face(tmp_path / "hf", model)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for change, expected in (
        ({"model_type": "wav2vec2"}, "expected model_type 'whisper', found 'wav2vec2'"),
        ({"d_model": 32}, "expected the stated n_audio_state 32, found 16"),
        ({"decoder_layers": 4}, "expected the stated n_text_layer 4, found 3"),
        ({"encoder_attention_heads": 3}, "attention heads that share the encoder's 16 channels, found 3"),
        (
            {"encoder_attention_heads": None},
            "attention heads that share the encoder's 16 channels, found None",
        ),
    ):
        file.write_text(json.dumps(config | change))
        assert expected in load_error(folder)
    file.write_text(json.dumps({key: config[key] for key in config if key != "decoder_attention_heads"}))
    assert "lacks 'decoder_attention_heads'" in load_error(folder)
    file.write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"alignment_heads": [[7, 0]]}))
    assert "alignment heads [[7, 0]], expected [layer, head] pairs below [3, 2]" in load_error(folder)


def change_parameters(state: dict[str, Tensor]) -> dict[str, tuple[dict[str, object], str]]:
    norm, vocabulary = "decoder.ln.weight", "decoder.token_embedding.weight"
    nan = state[norm].clone()
    nan[3] = float("nan")
    return {
        "missing": ({norm: None, "decoder.ln.bias": None}, "2 missing: decoder.ln.bias, decoder.ln.weight"),
        "unexpected": ({"lm_head": state[norm]}, "1 unexpected: lm_head"),
        "shape": ({norm: torch.zeros(7)}, "decoder.ln.weight (expected [16], found [7])"),
        "no tensor": ({norm: 1.0}, "decoder.ln.weight (expected [16], found [])"),
        "type": ({norm: torch.zeros(16, dtype=torch.int8)}, "1 not of a float type: decoder.ln.weight"),
        "layer": ({"decoder.blocks.9.attn_ln.bias": state[norm]}, "stated n_text_layer 3, found 4"),
        "nan": ({norm: nan}, "decoder.ln.weight holds NaN"),
        "positions": ({POSITIONS: state[POSITIONS] + 0.1}, "expected Whisper's sinusoids"),
        "no positions": ({POSITIONS: None}, "with 2 axes, found nothing"),
        "axes": ({vocabulary: state[norm]}, "with 2 axes, found shape [16]"),
        "tokens": ({vocabulary: torch.zeros(100, 16)}, "stated n_vocab 51864, found 100"),
    }


@pytest.mark.parametrize("kind", change_parameters(random_model().state_dict()))
def test_wrong_parameters_are_listed(kind: str, model: Whisper, tmp_path: Path) -> None:
    """Missing, unexpected, mis-shaped and damaged parameters are each named."""
    state = model.state_dict()
    changes, expected = change_parameters(state)[kind]
    changed = {name: value for name, value in {**state, **changes}.items() if value is not None}
    path = tmp_path / "model.pt"
    torch.save({"dims": asdict(DIMS), "model_state_dict": changed}, path)
    assert expected in load_error(path)


def test_a_vocabulary_that_is_not_whispers_is_refused(tmp_path: Path) -> None:
    """A model with added tokens has no tokenizer here, so it is refused by its size."""
    path = write_pt(
        tmp_path / "model.pt", random_model(ModelDimensions(**(asdict(DIMS) | {"n_vocab": 60000})))
    )
    assert "has 60000 tokens, expected one of Whisper's sizes: 51864" in load_error(path)


def test_an_untied_projection_is_refused(model: Whisper, tmp_path: Path) -> None:
    """A stored output projection is accepted only when it equals the token embedding."""
    folder = write_hugging_face(tmp_path / "hf", model)
    tensors = load_file(folder / "model.safetensors")
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert_same_weights(load_checkpoint(folder), model)
    tensors["proj_out.weight"][0, 0] += 1
    save_file(tensors, folder / "model.safetensors")
    assert "its output projection is not its token embedding" in load_error(folder)


def test_a_bias_for_keys_is_refused(model: Whisper, tmp_path: Path) -> None:
    """CTranslate2 stores zeros for the bias that Whisper's keys do not have; anything else is foreign."""
    folder = write_ctranslate2(tmp_path / "ct2", model)
    variables = ctranslate2_variables(model)
    variables["encoder/layer_0/self_attention/linear_0/bias"][20] = 1
    (folder / "model.bin").write_bytes(ctranslate2_bytes(variables))
    assert "bias for keys in 'encoder/layer_0/self_attention/linear_0/bias'" in load_error(folder)


SMALL_FILE = ctranslate2_bytes(
    quantise(
        {
            "encoder/position_encodings/encodings": sinusoids(4, 4).numpy(),
            "decoder/embeddings/weight": np.ones((5, 2), np.float32),
            "decoder/layer_0/self_attention/linear_0/weight": np.ones((6, 2), np.float32),
        },
        "int8",
    )
)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SMALL_FILE) - 1), st.integers(0, 255))
def test_damaged_ctranslate2_files_only_raise_checkpoint_errors(position: int, byte: int) -> None:
    """A file that is cut anywhere is refused; one with any changed byte is read or refused."""
    with pytest.raises(CheckpointError):
        ctranslate2.read_whisper(SMALL_FILE[:position], source="file")
    changed = SMALL_FILE[:position] + bytes([byte]) + SMALL_FILE[position + 1 :]
    try:
        ctranslate2.read_whisper(changed, source="file")
    except CheckpointError as error:
        assert str(error).startswith("file ")  # noqa: PT017 - both outcomes are right
