"""Frames that wait in the encoder: gates, delays, what is read of provisional frames, and learning it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from whisper.tokenizer import get_tokenizer

from asr.checkpoint import load_checkpoint
from asr.chunking import Chunking
from asr.encoder import CausalEncoder
from asr.errors import OptionError
from asr.frontier import LookPolicy, WaitPolicy
from asr.head import TransducerHead
from asr.head_files import NO_ADAPTER, HeadCard, load_head, save_head
from asr.recognizer import Recognizer
from asr.transducer_reader import ReadJob, TransducerReader, read
from asr.transducer_search import GreedySearch, SearchJob
from asr.waiting import (
    WaitScheduler,
    expected_cost,
    hard_stays,
    n_ready,
    soft_stays,
    waiting_delays,
)
from asr.words import Vocabulary
from benchmarks import waiting
from tests.corpus import write_corpus
from tests.heads import TINY_HEAD, let_speak, tiny_head
from tests.test_recognizer import play
from tests.tiny import tiny_whisper
from tests.transducers import head_card, speaking_head
from training.config import WaitTrainConfig
from training.head_data import FeatureMaker, Stepped
from training.head_evaluation import NO_TIMING, Encoded, encode, stream
from training.head_loop import parse_config
from training.head_setup import Frozen, new_head
from training.wait_loop import Lesson, Versions, learn, main, make_lesson, measure_wait_dial, split_versions

VOCABULARY = Vocabulary(get_tokenizer(multilingual=False))
CHUNKINGS = [Chunking(4, 1, 12, 16), Chunking(5, 0, 12, 9), Chunking(15, 1, 12, 7)]
WAITS = [WaitPolicy(bias) for bias in (-1.0, 0.0, 1.0)] + [WaitPolicy(future=n) for n in (0, 1, 3)]


def waiting_head(seed: int = 1) -> TransducerHead:
    """A head whose random scheduler lets about half of the frames wait."""
    head = tiny_head(seed, replace(TINY_HEAD, max_future=6))
    assert head.waiting
    torch.nn.init.normal_(head.waiting.out.weight)
    return head.double()


def random_steps(chunking: Chunking, n_frames: int, seed: int) -> Encoded:
    """Final frames, and provisional ones that are near to them, as double."""
    generator = torch.Generator().manual_seed(seed)
    final = torch.randn(1, n_frames, TINY_HEAD.encoder_width, generator=generator, dtype=torch.float64)
    end, ahead = 0, []
    while chunking.n_final(end) < n_frames:
        end = chunking.next_end(end)
        part = final[:, chunking.n_final(end) : end]
        ahead.append(part + 0.5 * torch.randn(part.shape, generator=generator, dtype=torch.float64))
    return Encoded("", final, (), tuple(ahead))


def one_pass(
    head: TransducerHead, utterance: Encoded, chunking: Chunking, wait: WaitPolicy
) -> tuple[list[int], list[int]]:
    """Tokens and waits, from the definition: whole passes over the versions that were chosen so far."""
    policy = LookPolicy(fixed=(0,) * head.config.n_blocks)
    n_frames = utterance.frames.shape[1]
    assert head.waiting
    chosen: list[Tensor] = []
    came: list[int] = []
    waits: list[int] = []
    end = step = 0
    while len(chosen) < n_frames // 2:
        end = chunking.next_end(end)
        n_final = min(chunking.n_final(end), n_frames)
        view = torch.cat([utterance.frames[0, :n_final], utterance.ahead[step][0]])[:n_frames]
        step += 1
        heard = len(view) // 2
        came += [heard] * (heard - len(came))
        pairs = [view[2 * i : 2 * i + 2] for i in range(heard)]
        while len(chosen) < heard:
            at = len(chosen)
            if 2 * at + 2 > n_final:
                frames = torch.cat([*chosen, *pairs[at:]])[None]
                outputs = head(frames, torch.tensor([heard]), policy=policy).frames[0, at]
                future = heard - 1 - at
                logit = head.waiting(outputs, torch.tensor(future)).item() + wait.bias
                if future < wait.future if wait.future is not None else logit > 0:
                    break
            chosen.append(pairs[at])
            waits.append(0 if n_final == n_frames else heard - came[at])
    whole = head(torch.cat(chosen)[None], torch.tensor([len(chosen)]), policy=policy).frames
    search = GreedySearch(head.transducer)
    state = search.init_state()
    search.advance([SearchJob(whole, state)])
    return [emission.token for emission in state.draft], waits


@pytest.mark.parametrize("wait", WAITS, ids=str)
@pytest.mark.parametrize("chunking", CHUNKINGS, ids=str)
def test_streaming_equals_one_pass_over_the_chosen_versions(chunking: Chunking, wait: WaitPolicy) -> None:
    """For any chunks, odd ones too, and several streams in one batch."""
    head = waiting_head()
    policy = LookPolicy(fixed=(0,) * head.config.n_blocks, wait=wait)
    spoken = [random_steps(chunking, n_frames, seed=n_frames) for n_frames in (120, 64, 90)]
    streamed = stream(head, spoken, chunking=chunking, policy=policy, vocabulary=VOCABULARY)
    said = 0
    for utterance, result in zip(spoken, streamed, strict=True):
        tokens, waits = one_pass(head, utterance, chunking, wait)
        assert [token.id for token in result.tokens] == tokens
        assert list(result.waits) == waits
        said += len(tokens)
    assert said > 10


def test_the_dials_ends_read_the_first_and_the_last_versions() -> None:
    """Turned far down nothing waits; turned far up every frame is read when it is final."""
    head, chunking = waiting_head(), CHUNKINGS[0]
    spoken = [random_steps(chunking, 120, seed=5)]
    policy = LookPolicy(fixed=(0,) * head.config.n_blocks)
    ways = [replace(policy, wait=WaitPolicy(bias)) for bias in (-1e6, 1e6)] + [policy]
    first, last, final = (
        stream(head, spoken, chunking=chunking, policy=each, vocabulary=VOCABULARY)[0] for each in ways
    )
    assert set(first.waits) == {0}
    assert last == final and np.mean(last.waits) > 6
    assert [token.id for token in first.tokens] != [token.id for token in final.tokens]


@pytest.mark.parametrize("broken", ["waiting.out", "ln_post"])
def test_a_failed_step_leaves_the_stream_as_it_was(broken: str) -> None:
    """Weighing what may wait, too, has left no trace."""
    head, chunking = waiting_head(), CHUNKINGS[0]
    utterance = random_steps(chunking, 120, seed=6)
    policy = LookPolicy(fixed=(0,) * head.config.n_blocks, wait=WaitPolicy())
    reader, undisturbed = (
        TransducerReader(head, VOCABULARY, policy=policy, timing=NO_TIMING) for _ in range(2)
    )
    end = 0
    for ahead in utterance.ahead[:-1]:
        end = chunking.next_end(end)
        n_final = min(chunking.n_final(end), 120)
        frames = torch.cat([utterance.frames[:, :n_final], ahead], dim=1)
        jobs = [
            ReadJob(each, frames, 0, n_provisional=ahead.shape[1], n_encoded=end)
            for each in (reader, undisturbed)
        ]
        hook = head.get_submodule(broken).register_forward_pre_hook(_fail)
        with pytest.raises(RuntimeError, match="broken"):
            read(head, jobs[:1])
        hook.remove()
        assert read(head, jobs[:1]) == read(head, jobs[1:])
    assert reader.n_heard == undisturbed.n_heard > 60


def _fail(*_: object) -> None:
    raise RuntimeError("broken")


def test_hard_gates_are_the_limit_of_soft_ones() -> None:
    """Costs and delays of sharp soft gates are those of hard ones; a wait ends at the first closed gate."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 30, generator=generator)
    costs = torch.rand(5, 30, generator=generator)
    heard = torch.arange(30) // 3 * 3 + 3 + 3 * torch.arange(5)[:, None]
    hard = hard_stays(logits, 0.0)
    chosen = hard.sum(dim=0).long()
    torch.testing.assert_close(expected_cost(hard, costs), costs.gather(0, chosen[None])[0])
    read_at = heard.gather(0, chosen[None])[0].cummax(dim=0).values
    torch.testing.assert_close(waiting_delays(hard, heard), (read_at - heard[0]).float())
    sharp = soft_stays(1e4 * logits)
    torch.testing.assert_close(expected_cost(sharp, costs), expected_cost(hard, costs))
    torch.testing.assert_close(waiting_delays(sharp, heard), waiting_delays(hard, heard))


@pytest.mark.parametrize(("logits", "n"), [([], 0), ([-1, -2], 2), ([-1, 0.5, -1], 1), ([3, -1], 0)])
def test_frames_are_read_up_to_the_first_that_waits(logits: list[float], n: int) -> None:
    assert n_ready(torch.tensor(logits), 0.0) == n
    assert n_ready(torch.tensor(logits), 5.0) == 0
    assert n_ready(torch.tensor(logits), -5.0) == len(logits)


def lessons(n: int) -> list[Lesson]:
    """Frames whose first number says whether the next version says something else."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(n):
        needy = torch.rand(60, generator=generator) < 0.1
        frames = torch.randn(3, 60, 8, generator=generator)
        frames[0, :, 0], frames[1:, :, 0] = needy.float(), 0.0
        heard = torch.arange(60) // 2 * 2 + 2 + 2 * torch.arange(3)[:, None]
        costs = torch.stack([needy * 2.0, torch.zeros(60), torch.zeros(60)])
        made.append(Lesson(frames, heard, costs))
    return made


def test_waiting_is_learned_where_it_is_needed_and_only_there() -> None:
    """The dial goes from nobody waits to all do; in between those wait first that need it."""
    torch.manual_seed(0)
    scheduler = WaitScheduler(8, max_future=4)
    config = WaitTrainConfig(
        **dict.fromkeys(("head", "output", "manifest", "dev_manifest"), Path()),
        steps=300,
        dial_spread=1.0,
        latency_price=0.5,
        learning_rate=1e-2,
    )
    learn(scheduler, lessons(12), config)
    (test,) = lessons(13)[12:]
    with torch.no_grad():
        waits = scheduler(test.frames, test.future())[0] > 0
    assert (waits == (test.frames[0, :, 0] > 0.5)).float().mean() > 0.95
    dial = measure_wait_dial(scheduler, lessons(4))
    means = [point.mean_ms for point in dial.points]
    assert means[0] == 0 and means[-1] == pytest.approx(160, abs=10) and len(means) >= 4
    biases = [point.bias for point in dial.points]
    assert biases == sorted(biases)


def maker(chunking: Chunking) -> FeatureMaker:
    return FeatureMaker(CausalEncoder(tiny_whisper().encoder), n_mels=80, chunkings=[chunking], seed=0)


def test_steps_are_those_of_one_pass(jfk: np.ndarray) -> None:
    """Final frames equal the masked forward; what a last step shows was encoded with all that it heard."""
    chunking = Chunking(5, 1, 20, 8)
    clips = [jfk[:40_000], jfk[20_000:50_000]]
    stepped = maker(chunking).encode_steps(clips, chunking)
    whole, lengths = maker(chunking).encode(clips, chunking)
    assert torch.equal(stepped.lengths, lengths)
    torch.testing.assert_close(stepped.final.float(), whole, atol=1e-2, rtol=1e-2)
    assert [part.shape[1] for part in stepped.ahead] == [min(8, end) for end in stepped.ends]
    # A signal as long as one step is that step: every frame sees every other.
    first = stepped.ends[0]
    alone, _ = maker(chunking).encode([clips[0][: first * 320]], Chunking(first, 0, 20, 0))
    torch.testing.assert_close(
        stepped.ahead[0][0, :-1].float(), alone[0, first - 8 : first - 1], atol=0.1, rtol=0.1
    )


def test_versions_are_what_the_steps_showed() -> None:
    """Against the definition, frame by frame; odd chunks cut pairs in two."""
    for chunking in CHUNKINGS:
        utterance = random_steps(chunking, 130, seed=2)
        ends = [chunking.next_end(0)]
        while len(ends) < len(utterance.ahead):
            ends.append(chunking.next_end(ends[-1]))
        stepped = Stepped(tuple(ends), utterance.frames, utterance.ahead, torch.tensor([38]))
        versions = split_versions(stepped, 0)
        views = [
            (end, torch.cat([utterance.frames[0, : chunking.n_final(end)], ahead[0]]))
            for end, ahead in zip(ends, utterance.ahead, strict=True)
        ]
        for t in range(38):
            expected = []
            for end, view in views:
                if len(view) >= 2 * t + 2:
                    expected.append((end // 2, view[2 * t : 2 * t + 2].flatten()))
                    if chunking.n_final(end) >= 2 * t + 2:
                        break
            expected += [expected[-1]] * (len(versions.heard) - len(expected))
            assert versions.heard[:, t].tolist() == [heard for heard, _ in expected]
            assert torch.equal(versions.frames[:, t], torch.stack([frame for _, frame in expected]))


def test_a_lesson_costs_nothing_once_frames_are_final() -> None:
    """Earlier versions cost what they change; the text that is read there is the final frames'."""
    head, chunking = waiting_head().float(), CHUNKINGS[0]
    utterance = random_steps(chunking, 80, seed=2)
    final = utterance.frames.float()
    let_speak(head, head(final, torch.tensor([40]), policy=LookPolicy(fixed=(0, 0))).frames)
    pairs = final[0].reshape(40, -1)
    near, far = pairs + 0.01 * torch.randn(40, pairs.shape[1]), torch.randn(40, pairs.shape[1])
    heard = torch.arange(40) + 1 + torch.arange(3)[:, None]
    lesson = make_lesson(head, Versions(torch.stack([far, near, pairs]), heard))
    assert lesson.costs.shape == (3, 40) and (lesson.costs[2] == 0).all()
    assert lesson.costs[0].mean() > 10 * lesson.costs[1].mean() > 0
    assert lesson.future()[:, 5].tolist() == [0, 1, 2]


def test_a_stream_of_which_nothing_is_read_costs_what_blank_changes() -> None:
    """Noise is speech to learn from, too: there the versions should say nothing."""
    head = waiting_head().float()
    with torch.no_grad():
        head.transducer.out.bias[head.transducer.blank] += 100
    frames = torch.randn(2, 30, 2 * TINY_HEAD.encoder_width)
    lesson = make_lesson(head, Versions(frames, torch.arange(1, 31).expand(2, -1)))
    assert lesson.costs.shape == (2, 30) and lesson.costs.max() < 1e-3


def waiting_recognizer() -> Recognizer:
    """Streams whose frames wait in the encoder."""
    plain, model = speaking_head(), tiny_whisper()
    config = replace(plain.config, max_future=8)
    torch.manual_seed(1)
    head = TransducerHead(config).eval().requires_grad_(False)
    head.load_state_dict(plain.state_dict(), strict=False)
    assert head.waiting
    torch.nn.init.normal_(head.waiting.out.weight, std=0.5)
    points = [
        {"bias": -50.0, "mean_ms": 0.0, "p95_ms": 0.0},
        {"bias": 0.0, "mean_ms": 100.0, "p95_ms": 320.0},
        {"bias": 50.0, "mean_ms": 320.0, "p95_ms": 320.0},
    ]
    dials = {"80": points, "300": [{**point, "bias": point["bias"] + 1} for point in points]}
    card = replace(head_card(), config=config.to_json(), dial=[], wait_dials=dials)
    return Recognizer(model, model, name="tiny-random", head=(head, card))


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return waiting_recognizer()


def test_a_stream_says_what_its_steps_say(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """The whole recogniser, fed in blocks, against the reader on steps that were encoded before."""
    samples = jfk[8_000 : 5 * 16_000]
    live = recognizer.stream(decoder="transducer", latency=100, chunk_ms=80, left_context_s=5.0)
    play(live, samples, block=1111)
    chunking = Chunking.from_ms(80, left_context_s=5.0, right_context_ms=320)
    spoken = encode(maker(chunking), samples, chunking, text="")
    assert recognizer._head_card
    policy = recognizer._head_card.policy(latency=100, chunk_ms=80)
    (expected,) = stream(
        recognizer._engine.head, [spoken], chunking=chunking, policy=policy, vocabulary=VOCABULARY
    )
    text = VOCABULARY.text(token.id for token in expected.tokens)
    assert live.transcript.text.split()[:8] == text.split()[:8] != []
    n_same = len(samples) // 640 - 20  # before the end, where silence is put in
    assert live.waits.frames_ms()[:n_same] == [40 * wait for wait in expected.waits[:n_same]]
    assert {0, 80} < set(live.waits.frames_ms()) <= {0, 80, 160, 240, 320}


def test_the_dial_of_a_stream(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Turned down nothing waits; up, everything; a number waits for as many frames."""
    ways = [{"latency": 0}, {"latency": 100}, {"latency": "high"}, {"fixed_look": 4}, {"right_context_ms": 0}]
    means = []
    for options in ways:
        each = recognizer.stream(decoder="transducer", chunk_ms=80, **options)  # type: ignore[arg-type]
        play(each, jfk[: 4 * 16_000])
        means.append(np.mean(each.waits.frames_ms()))
    assert means[0] == means[4] == 0 < means[1] < means[2] and means[2] == pytest.approx(320, abs=15)
    assert means[3] == pytest.approx(160, abs=15)


def test_flushes_count_no_silence(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Every frame of the audio waits once, however often a stream is flushed where it stands."""
    n_waits = []
    for n_flushes in (0, 1, 3):
        each = recognizer.stream(decoder="transducer", chunk_ms=80, latency=100)
        each.feed(jfk[: 2 * 16_000 + 500])
        for _ in range(n_flushes):
            each.flush()
        if n_flushes:
            assert 45 <= len(each.waits.frames_ms()) <= 50
        each.feed(jfk[2 * 16_000 + 500 : 4 * 16_000])
        each.finish()
        n_waits.append(len(each.waits.frames_ms()))
    assert len(set(n_waits)) == 1


def test_company_changes_nothing(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Waiting, fixed and Whisper's streams advance together as they do alone."""
    options: list[dict[str, object]] = [
        {"decoder": "transducer", "chunk_ms": 80, "latency": 100},
        {"decoder": "transducer", "chunk_ms": 300, "beam_size": 2},
        {"decoder": "transducer", "chunk_ms": 160, "fixed_look": 2},
        {"decoder": "whisper"},
    ]
    clip = jfk[: 3 * 16_000]
    streams = [recognizer.stream(**each) for each in options]  # type: ignore[arg-type]
    for start in range(0, len(clip), 3200):
        recognizer.step_batch([(each, clip[start : start + 3200]) for each in streams])
    for each, together in zip(options, streams, strict=True):
        together.finish()
        alone = recognizer.stream(**each)  # type: ignore[arg-type]
        play(alone, clip, block=3200)
        assert together.transcript.text == alone.transcript.text
        assert together.waits.frames_ms() == alone.waits.frames_ms()


def test_cards_have_a_dial_for_each_chunk_size(recognizer: Recognizer) -> None:
    """The nearest is taken; blocks do not look ahead; wrong values are refused."""
    card = recognizer._head_card
    assert card and card.waits
    assert card.policy(latency=100, chunk_ms=80) == LookPolicy(fixed=(0, 0), wait=WaitPolicy(0.0))
    assert card.policy(latency=100, chunk_ms=600) == LookPolicy(fixed=(0, 0), wait=WaitPolicy(1.0))
    assert card.policy() == card.trained_policy() == LookPolicy(fixed=(0, 0), wait=WaitPolicy(0.0))
    assert card.policy(fixed_look=8) == LookPolicy(fixed=(0, 0), wait=WaitPolicy(future=8))
    with pytest.raises(OptionError, match="from 0 to 8"):
        card.policy(fixed_look=9)
    with pytest.raises(OptionError, match="not been measured"):
        replace(card, wait_dials={}).policy(latency="low")


def commands(corpus: Path, more: Sequence[str] = ()) -> list[str]:
    """A short run on a corpus of noise."""
    return [
        *f"--head {corpus}/head --output {corpus}/learned --manifest {corpus}/m.jsonl".split(),
        *f"--dev-manifest {corpus}/m.jsonl --model {corpus}/w.pt --adapter none --limit 4".split(),
        *f"--dev-limit 2 --steps 3 --chunk-ms 80,300 --max-future 5 {' '.join(more)}".split(),
    ]


def test_a_run_leaves_a_head_that_waits(tmp_path: Path) -> None:
    """Its other weights are as before, and its card has a dial for each chunk size."""
    corpus = write_corpus(tmp_path)
    model = load_checkpoint(str(corpus / "w.pt"))
    head = tiny_head()
    card = HeadCard("w", model.weights_hash, NO_ADAPTER, TINY_HEAD.to_json(), training={"steps": 7})
    save_head(head, corpus / "head", card)
    assert main(commands(corpus)) == 0
    learned, read_card = load_head(
        corpus / "learned", weights_hash=model.weights_hash, adapter_hash=NO_ADAPTER
    )
    assert learned.waiting and learned.waiting.out.weight.abs().max() > 0
    for name, value in head.half().float().state_dict().items():
        assert torch.equal(learned.state_dict()[name], value)
    assert set(read_card.wait_dials) == {"80", "300"} and read_card.waits
    assert read_card.training["steps"] == 7 and read_card.training["waiting"]["steps"] == 3
    assert read_card.read_dial(chunk_ms=80)
    frozen = Frozen.load(str(corpus / "w.pt"), "none", torch.device("cpu"))
    further = f"--manifest {corpus}/m.jsonl --aligned {corpus}/a.jsonl --output {corpus}/further"
    again = new_head(parse_config([*further.split(), "--start-from", f"{corpus}/learned"]), frozen)
    assert again.waiting is None  # it would not fit a head that goes on learning


def test_ways_of_waiting_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By rule, by the oracle and as learned; the dial's end that never waits reads what comes first."""
    corpus = write_corpus(tmp_path)
    weights_hash = load_checkpoint(str(corpus / "w.pt")).weights_hash
    recognizer = waiting_recognizer()
    assert recognizer._engine.head and recognizer._head_card
    card = replace(recognizer._head_card, base_weights_hash=weights_hash)
    save_head(recognizer._engine.head, corpus / "head", card)
    command = f"--manifest {corpus}/m.jsonl --model {corpus}/w.pt --adapter none --limit 3 --beam 1"
    assert waiting.main([*command.split(), "--head", f"{corpus}/head"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert rows["always 0 ms"]["mean_ms"] == 0 < rows["always 160 ms"]["mean_ms"]
    assert rows["oracle, 1.0 nats"]["mean_ms"] <= rows["oracle, 0.1 nats"]["mean_ms"] <= 320
    assert rows["learned, 10 ms"]["mean_ms"] < rows["learned, 320 ms"]["mean_ms"]
    assert all(row["n_words"] == 6 for row in rows.values())
    assert waiting.main([*command.split(), "--head", f"{corpus}/none"]) == 2
    assert "no such head folder" in capsys.readouterr().err


def test_nothing_to_learn_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_corpus(tmp_path)
    weights_hash = load_checkpoint(str(corpus / "w.pt")).weights_hash
    save_head(tiny_head(), corpus / "head", HeadCard("w", weights_hash, NO_ADAPTER, TINY_HEAD.to_json()))
    (corpus / "m.jsonl").write_text("")
    assert main(commands(corpus)) == 1
    assert "m.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [("--right-context-ms 0", "nothing to wait for"), ("--latency-price 0", "latency_price must be above 0")],
)
def test_runs_that_make_no_sense(
    tmp_path: Path, more: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(commands(tmp_path, more.split())) == 1
    assert message in capsys.readouterr().err
