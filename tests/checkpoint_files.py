"""Writes Whisper models in every format that foresound loads, for the tests of the checkpoints."""

import json
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from whisper.model import ModelDimensions, Whisper

from asr.checkpoint import Checkpoint, load_checkpoint
from asr.errors import CheckpointError
from asr.weights import POSITIONS, hash_weights

DIMS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=20,
    n_audio_state=16,
    n_audio_head=2,
    n_audio_layer=2,
    n_vocab=51864,
    n_text_ctx=12,
    n_text_state=16,
    n_text_head=2,
    n_text_layer=3,
)
HEADS = [[1, 0], [2, 1]]

# Whisper's names to those of transformers, applied in order.
HUGGING_FACE_NAMES = {
    ".blocks.": ".layers.",
    ".mlp.0.": ".fc1.",
    ".mlp.2.": ".fc2.",
    ".mlp_ln.": ".final_layer_norm.",
    ".cross_attn_ln.": ".encoder_attn_layer_norm.",
    ".attn_ln.": ".self_attn_layer_norm.",
    ".cross_attn.": ".encoder_attn.",
    ".attn.": ".self_attn.",
    ".query.": ".q_proj.",
    ".key.": ".k_proj.",
    ".value.": ".v_proj.",
    ".out.": ".out_proj.",
    ".ln_post.": ".layer_norm.",
    "decoder.ln.": "decoder.layer_norm.",
    ".token_embedding.": ".embed_tokens.",
    ".positional_embedding": ".embed_positions.weight",
}


def random_model(dims: ModelDimensions = DIMS) -> Whisper:
    """A Whisper whose values are all different and exact in float16."""
    torch.manual_seed(0)
    model = Whisper(dims).eval()
    for name, value in model.state_dict().items():
        if name != POSITIONS:
            value.copy_((0.2 * torch.randn_like(value)).half())
    return model


def write_pt(path: Path, model: Whisper, *, dtype: torch.dtype = torch.float16) -> Path:
    state = {name: value.to(dtype) for name, value in model.state_dict().items()}
    torch.save({"dims": asdict(model.dims), "model_state_dict": state}, path)
    return path


def write_hugging_face(folder: Path, model: Whisper, *, n_shards: int = 1) -> Path:
    folder.mkdir()
    dims = model.dims
    config = {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "num_mel_bins": dims.n_mels,
        "max_source_positions": dims.n_audio_ctx,
        "d_model": dims.n_audio_state,
        "encoder_attention_heads": dims.n_audio_head,
        "encoder_layers": dims.n_audio_layer,
        "encoder_ffn_dim": 4 * dims.n_audio_state,
        "vocab_size": dims.n_vocab,
        "max_target_positions": dims.n_text_ctx,
        "decoder_attention_heads": dims.n_text_head,
        "decoder_layers": dims.n_text_layer,
        "decoder_ffn_dim": 4 * dims.n_text_state,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"alignment_heads": HEADS}))
    tensors = {}
    for name, value in model.state_dict().items():
        for ours, theirs in HUGGING_FACE_NAMES.items():
            name = name.replace(ours, theirs)
        tensors[f"model.{name}"] = value.contiguous()
    if n_shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    files = {name: f"model-{index % n_shards}.safetensors" for index, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in files if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def ctranslate2_variables(model: Whisper) -> dict[str, np.ndarray]:
    """The variables that the converter of CTranslate2 makes from a model, in float32."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    variables: dict[str, np.ndarray] = {
        "encoder/num_heads": np.array(model.dims.n_audio_head, np.int16),
        "decoder/num_heads": np.array(model.dims.n_text_head, np.int16),
        "decoder/scale_embeddings": np.array(0, np.int8),
        "decoder/embeddings/weight": state["decoder.token_embedding.weight"],
    }

    def norm(scope: str, name: str) -> None:
        variables[f"{scope}/gamma"], variables[f"{scope}/beta"] = (
            state[f"{name}.weight"],
            state[f"{name}.bias"],
        )

    def linear(scope: str, *names: str) -> None:
        biases = [state.get(f"{name}.bias", np.zeros(model.dims.n_text_state, np.float32)) for name in names]
        variables[f"{scope}/weight"] = np.concatenate([state[f"{name}.weight"] for name in names])
        variables[f"{scope}/bias"] = np.concatenate(biases)

    for stack, last, n_layer in (
        ("encoder", "ln_post", model.dims.n_audio_layer),
        ("decoder", "ln", model.dims.n_text_layer),
    ):
        variables[f"{stack}/position_encodings/encodings"] = state[f"{stack}.positional_embedding"]
        norm(f"{stack}/layer_norm", f"{stack}.{last}")
        for layer in range(n_layer):
            ours, theirs = f"{stack}.blocks.{layer}", f"{stack}/layer_{layer}"
            norm(f"{theirs}/self_attention/layer_norm", f"{ours}.attn_ln")
            linear(
                f"{theirs}/self_attention/linear_0", *(f"{ours}.attn.{x}" for x in ("query", "key", "value"))
            )
            linear(f"{theirs}/self_attention/linear_1", f"{ours}.attn.out")
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.mlp_ln")
            linear(f"{theirs}/ffn/linear_0", f"{ours}.mlp.0")
            linear(f"{theirs}/ffn/linear_1", f"{ours}.mlp.2")
            if stack == "decoder":
                norm(f"{theirs}/attention/layer_norm", f"{ours}.cross_attn_ln")
                linear(f"{theirs}/attention/linear_0", f"{ours}.cross_attn.query")
                linear(f"{theirs}/attention/linear_1", f"{ours}.cross_attn.key", f"{ours}.cross_attn.value")
                linear(f"{theirs}/attention/linear_2", f"{ours}.cross_attn.out")
    for name in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            variables[f"encoder/{name}/{kind}"] = state[f"encoder.{name}.{kind}"]
    return variables


def quantise(variables: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """Rounds the variables as CTranslate2 does; bfloat16 comes back as its raw bits in uint16."""
    result: dict[str, np.ndarray] = {}
    for name, value in variables.items():
        if value.ndim == 0 or kind == "float32":
            result[name] = value
        elif kind == "float16":
            result[name] = value.astype(np.float16)
        elif kind == "bfloat16":
            result[name] = torch.tensor(value).bfloat16().view(torch.int16).numpy().view(np.uint16)
        elif not name.endswith("/weight"):
            result[name] = value
        else:
            rows = np.abs(value.reshape(len(value), -1)).max(axis=1)
            scale = np.float32(127 / rows) if kind == "int8" else np.float32(2**10 / np.abs(value).max())
            per_row = scale.reshape(-1, *(1,) * (value.ndim - 1))
            result[name] = np.rint(value * per_row).astype(kind)
            result[f"{name}_scale"] = scale
    return result


def ctranslate2_bytes(
    variables: dict[str, np.ndarray], *, version: int = 6, spec_name: str = "WhisperSpec"
) -> bytes:
    """Serialises variables as model.bin; equal ones are stored once and aliased, as the converter does."""
    types = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "uint16": 5}
    stored: dict[bytes, str] = {}
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    records = []

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    for name, value in sorted(variables.items()):
        shape = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        raw = shape + struct.pack("<BI", types[str(value.dtype)], value.nbytes) + value.tobytes()
        if value.ndim and not name.endswith("_scale") and raw in stored and str(value.dtype) != "int8":
            aliases[name] = stored[raw]
        else:
            stored[raw] = name
            records.append(text(name) + raw)
    tail = b"".join(text(alias) + text(name) for alias, name in aliases.items())
    header = struct.pack("<I", version) + text(spec_name) + struct.pack("<II", 3, len(records))
    return header + b"".join(records) + struct.pack("<I", len(aliases)) + tail


def write_ctranslate2(folder: Path, model: Whisper, *, kind: str = "float16") -> Path:
    folder.mkdir()
    (folder / "model.bin").write_bytes(ctranslate2_bytes(quantise(ctranslate2_variables(model), kind)))
    (folder / "config.json").write_text(json.dumps({"alignment_heads": HEADS}))
    return folder


def assert_same_weights(found: Checkpoint, expected: Whisper) -> None:
    assert found.weights_hash == hash_weights(expected.state_dict())
    assert found.model.dims == expected.dims
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=0, atol=0, msg=name)


def load_error(path: str | Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


WRITERS: dict[str, Callable[[Path, Whisper], Path]] = {
    "pt": lambda folder, model: write_pt(folder / "model.pt", model),
    "pt_float32": lambda folder, model: write_pt(folder / "model.pt", model, dtype=torch.float32),
    "hugging_face": lambda folder, model: write_hugging_face(folder / "hf", model),
    "hugging_face_shards": lambda folder, model: write_hugging_face(folder / "hf", model, n_shards=3),
    "ctranslate2_float16": lambda folder, model: write_ctranslate2(folder / "ct2", model),
    "ctranslate2_float32": lambda folder, model: write_ctranslate2(folder / "ct2", model, kind="float32"),
}
