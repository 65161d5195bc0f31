"""Inputs that are almost right: a seed whose bytes were changed, cut, doubled or swapped."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

_ODD = (b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"null", b"-1", b"1e999", b'"', b"[]", b"{", b"\xed\xa0\x80")


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A seed after up to eight changes."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(("set", "insert", "odd", "cut", "drop", "double"))):
            case "set" if data:
                data[at] = draw(st.integers(0, 255))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "odd":
                odd = draw(st.sampled_from(_ODD))
                data[at : at + draw(st.sampled_from((0, len(odd))))] = odd
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + draw(st.integers(1, 64))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)
