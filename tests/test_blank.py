"""Heads whose blank is made less likely."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asr.head_files import NO_ADAPTER, HeadCard, load_head, save_head
from tests.heads import TINY_HEAD, tiny_head
from training.blank import main

HASH = "0" * 64


def test_blank_alone_gets_less_likely(tmp_path: Path) -> None:
    head = tiny_head()
    card = HeadCard(
        "tiny", HASH, NO_ADAPTER, TINY_HEAD.to_json(), training={"steps": 3}, results={"wer": 1.0}
    )
    save_head(head, tmp_path / "head", card)
    for source, output in (("head", "once"), ("once", "twice")):
        assert main([str(tmp_path / source), "-o", str(tmp_path / output), "--penalty", "0.5"]) == 0
    louder, read = load_head(tmp_path / "twice", weights_hash=HASH, adapter_hash=NO_ADAPTER)
    assert read.training == {"steps": 3, "blank_penalty": 1.0} and read.results == {}
    before, after = head.transducer.out.bias, louder.transducer.out.bias
    expected = torch.nn.functional.one_hot(torch.tensor(300), 301).float()
    torch.testing.assert_close(
        before - after, expected, rtol=0, atol=5e-3
    )  # heads are kept in half precision
    frames, texts = torch.randn(2, 5, TINY_HEAD.joint_width), torch.randn(2, 5, TINY_HEAD.joint_width)
    said = [each.transducer.join(frames, texts).log_softmax(-1) for each in (head, louder)]
    assert (said[1][..., -1] < said[0][..., -1]).all() and (said[1][..., :-1] > said[0][..., :-1]).all()


def test_what_cannot_be_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "-o", str(tmp_path / "out"), "--penalty", "1"]) == 1
    assert "no card.json" in capsys.readouterr().err
    assert main([str(tmp_path), "-o", str(tmp_path / "out"), "--penalty", "inf"]) == 1
    assert "finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
