"""Whisper parameters from a CTranslate2 `model.bin`, the format of faster-whisper.

The file is little-endian: binary version (uint32), spec name, spec revision (uint32), number of variables
(uint32), then per variable its name, rank (uint8), dimensions (uint32 each), type (uint8), number of bytes
(uint32) and raw values, and at the end pairs of names that share one variable. A string is its length with
the closing NUL (uint16) and its bytes.
"""

import re
import struct
from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

from asr.errors import CheckpointError
from asr.weights import EMBEDDING, POSITIONS, PROJECTION, Weights

SPEC_NAME = "WhisperSpec"
BINARY_VERSIONS = range(4, 7)  # 4 introduced the type byte and the byte count read here
N_HEAD_CHANNELS = 64  # channels per attention head in every Whisper; conversions before num_heads rely on it

# Order of CTranslate2's DataType. bfloat16 has no numpy type: its bits are the upper half of a float32.
_BFLOAT16 = 5
_DTYPES: tuple[str, ...] = ("<f4", "i1", "<i2", "<i4", "<f2", "<u2")

_PLAIN_NAMES = {
    "encoder/position_encodings/encodings": POSITIONS,
    "encoder/layer_norm/gamma": "encoder.ln_post.weight",
    "encoder/layer_norm/beta": "encoder.ln_post.bias",
    "decoder/embeddings/weight": EMBEDDING,
    "decoder/position_encodings/encodings": "decoder.positional_embedding",
    "decoder/layer_norm/gamma": "decoder.ln.weight",
    "decoder/layer_norm/beta": "decoder.ln.bias",
    "decoder/projection/weight": PROJECTION,
} | {f"encoder/conv{i}/{kind}": f"encoder.conv{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}

# Inside a layer; several names mean that the variable is their concatenation along the first axis.
_LAYER_NAMES: dict[str, tuple[str, ...]] = {
    "self_attention/layer_norm": ("attn_ln",),
    "self_attention/linear_0": ("attn.query", "attn.key", "attn.value"),
    "self_attention/linear_1": ("attn.out",),
    "attention/layer_norm": ("cross_attn_ln",),
    "attention/linear_0": ("cross_attn.query",),
    "attention/linear_1": ("cross_attn.key", "cross_attn.value"),
    "attention/linear_2": ("cross_attn.out",),
    "ffn/layer_norm": ("mlp_ln",),
    "ffn/linear_0": ("mlp.0",),
    "ffn/linear_1": ("mlp.2",),
}
_LAYER_PATTERN = re.compile(r"(encoder|decoder)/layer_(\d+)/(\w+/\w+)/(weight|bias|gamma|beta)")
_KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def read_whisper(data: bytes, *, source: str) -> Weights:
    """Reads and converts a whole `model.bin`.

    Args:
        data: the file's bytes.
        source: what error messages call the file.

    Returns:
        The weights under openai-whisper's names in float32, quantised ones restored as far as possible.

    Raises:
        CheckpointError: the data is truncated, no CTranslate2 model, or no Whisper.
    """
    variables, aliases = _read_variables(data, source=source)
    parameters: dict[str, Tensor] = {}
    for name, stored_name in ({name: name for name in variables} | aliases).items():
        if name.endswith("_scale") or variables[stored_name].ndim == 0:
            continue  # scales belong to their weight; scalars are the converter's settings
        value = _dequantise(variables, stored_name, source=source)
        parameters.update(_convert(name, value, source=source))
    return Weights(
        parameters,
        n_audio_head=_n_head(variables, "encoder", parameters.get(POSITIONS)),
        n_text_head=_n_head(variables, "decoder", parameters.get("decoder.positional_embedding")),
    )


class _Reader:
    """A cursor over the file that names the place where the data ends too early."""

    def __init__(self, data: bytes, *, source: str) -> None:
        self._data = memoryview(data)
        self._source = source
        self._offset = 0
        self.place = "the header"

    @property
    def n_left(self) -> int:
        return len(self._data) - self._offset

    def take(self, n_bytes: int) -> memoryview:
        if n_bytes > self.n_left:
            raise CheckpointError(
                f"{self._source} is truncated or damaged: {self.place} needs {n_bytes} more bytes, "
                f"{self.n_left} are left of {len(self._data)}; fetch it again"
            )
        self._offset += n_bytes
        return self._data[self._offset - n_bytes : self._offset]

    def number(self, code: str) -> int:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return int(value)

    def string(self) -> str:
        raw = bytes(self.take(self.number("H")))
        try:
            return raw.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise CheckpointError(
                f"{self._source} is damaged: {self.place} holds a name that is no text; fetch it again"
            ) from None


def _read_variables(data: bytes, *, source: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the variables in their stored type, bfloat16 as float32, and the aliases: name to stored name."""
    reader = _Reader(data, source=source)
    version = reader.number("I")
    if version not in BINARY_VERSIONS:
        raise CheckpointError(
            f"{source} is not a CTranslate2 model: expected binary version {BINARY_VERSIONS[0]} to "
            f"{BINARY_VERSIONS[-1]} in its first 4 bytes, found {version}; fetch it again or convert the "
            "original with a current ct2-transformers-converter"
        )
    spec_name = reader.string()
    if spec_name != SPEC_NAME:
        raise CheckpointError(
            f"{source} is a CTranslate2 model of kind {spec_name!r}, expected {SPEC_NAME!r}"
        )
    reader.number("I")  # spec revision: says nothing that the variables' names do not
    variables: dict[str, np.ndarray] = {}
    for index in range(reader.number("I")):
        reader.place = f"variable {index}"
        name = reader.string()
        reader.place = f"variable {name!r}"
        variables[name] = _read_array(reader, name, source=source)
    reader.place = "the list of aliases"
    aliases = {reader.string(): reader.string() for _ in range(reader.number("I"))}
    for alias, name in aliases.items():
        if name not in variables:
            raise CheckpointError(f"{source} is damaged: {alias!r} shares {name!r}, which is not there")
    if reader.n_left:
        raise CheckpointError(
            f"{source} is damaged: expected its end, found {reader.n_left} more bytes; fetch it again"
        )
    return variables, aliases


def _read_array(reader: _Reader, name: str, *, source: str) -> np.ndarray:
    shape = tuple(reader.number("I") for _ in range(reader.number("B")))
    type_id = reader.number("B")
    n_bytes = reader.number("I")
    if type_id >= len(_DTYPES):
        raise CheckpointError(f"{source} holds {name!r} in type {type_id}, expected 0 to {len(_DTYPES) - 1}")
    dtype = np.dtype(_DTYPES[type_id])
    n_expected = prod(shape) * dtype.itemsize
    if n_bytes != n_expected:
        raise CheckpointError(
            f"{source} is damaged: expected {n_expected} bytes for {name!r} of shape {list(shape)}, "
            f"found {n_bytes}; fetch it again"
        )
    values = np.frombuffer(reader.take(n_bytes), dtype=dtype).reshape(shape)
    if type_id == _BFLOAT16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _dequantise(variables: Mapping[str, np.ndarray], name: str, *, source: str) -> Tensor:
    """Returns a variable in float32; integers are divided by their scale (one per row, or one in all)."""
    stored = variables[name]
    values = stored.astype(np.float32)
    if np.issubdtype(stored.dtype, np.floating):
        return torch.from_numpy(values)
    scale = variables.get(f"{name}_scale")
    if scale is None or scale.size not in (1, len(stored)):
        found = "none" if scale is None else f"{scale.size}"
        raise CheckpointError(
            f"{source} is damaged: quantised {name!r} needs 1 or {len(stored)} scales, found {found}"
        )
    per_row = scale.astype(np.float32).reshape(-1, *(1,) * (values.ndim - 1))
    return torch.from_numpy(values) / torch.from_numpy(per_row)


def _convert(name: str, value: Tensor, *, source: str) -> dict[str, Tensor]:
    """Returns the openai-whisper parameters held by one variable; an unknown name stays as it is."""
    if name in _PLAIN_NAMES:
        return {_PLAIN_NAMES[name]: value}
    match = _LAYER_PATTERN.fullmatch(name)
    if match is None or match[3] not in _LAYER_NAMES:
        return {name: value}
    stack, layer, part, kind = match.groups()
    targets = _LAYER_NAMES[part]
    if value.shape[0] % len(targets):
        raise CheckpointError(
            f"{source} holds {name!r} with {value.shape[0]} rows, expected a multiple of {len(targets)} "
            f"for {', '.join(targets)}"
        )
    parameters = {
        f"{stack}.blocks.{layer}.{target}.{_KINDS[kind]}": rows.contiguous()
        for target, rows in zip(targets, value.chunk(len(targets)), strict=True)
    }
    for key_bias in [each for each in parameters if each.endswith(".key.bias")]:
        if parameters.pop(key_bias).any():  # Whisper's keys have no bias: the converter stacks zeros
            raise CheckpointError(f"{source} holds a bias for keys in {name!r}, which Whisper does not have")
    return parameters


def _n_head(variables: Mapping[str, np.ndarray], stack: str, positions: Tensor | None) -> int:
    stored = variables.get(f"{stack}/num_heads")
    if stored is not None and stored.ndim == 0:
        return int(stored)
    return 0 if positions is None else positions.shape[-1] // N_HEAD_CHANNELS
