"""Reading a stream with the transducer: windows that overlap, batches, words, times and commitment."""

import copy
import random

import pytest
import torch
from whisper.tokenizer import get_tokenizer

from asr.bpe import TruncatedBpe
from asr.frontier import LookPolicy
from asr.head import HEAD_FRAME_SAMPLES, HeadState, TransducerHead
from asr.transducer_reader import EmissionTiming, Reading, ReadJob, TransducerReader, read
from asr.transducer_search import Emission, GreedySearch, SearchJob
from asr.words import Token, Vocabulary, build_words
from tests.heads import TINY_HEAD, let_speak, tiny_head

TOKENIZER = get_tokenizer(multilingual=False)
VOCABULARY = Vocabulary(TOKENIZER)
TIMING = EmissionTiming.from_ms(lead_ms=200, lag_ms=40)


@pytest.fixture(scope="module")
def head() -> TransducerHead:
    return tiny_head(1).double()


def _reader(head: TransducerHead, *, beam_size: int = 1, bias: float = 0.0) -> TransducerReader:
    return TransducerReader(head, VOCABULARY, policy=LookPolicy(bias), timing=TIMING, beam_size=beam_size)


def _frames(n_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, n_frames, TINY_HEAD.encoder_width, generator=generator, dtype=torch.float64)


def _expected(head: TransducerHead, frames: torch.Tensor, policy: LookPolicy) -> list[tuple[int, int]]:
    """(token, sample) of one pass and one search over the whole stream."""
    whole = head(frames, torch.tensor([frames.shape[1] // 2]), policy=policy).frames
    search = GreedySearch(head.transducer)
    state = search.init_state()
    search.advance([SearchJob(whole, state)])
    return [(e.token, (e.frame + 1) * HEAD_FRAME_SAMPLES) for e in state.draft]


def _seen(tokens: list[Token]) -> list[tuple[int, int]]:
    return [(token.id, token.peak) for token in tokens]


def test_streams_in_overlapping_windows_equal_one_pass(head: TransducerHead) -> None:
    """Three streams with dials of their own; windows begin anew and bring frames once more."""
    generator = random.Random(3)
    streams = [_frames(n, seed=n) for n in (160, 99, 121)]
    biases = [0.0, -2.0, 2.0]
    readers = [_reader(head, bias=bias) for bias in biases]
    tokens: list[list[Token]] = [[] for _ in streams]
    n_read, at = [0] * 3, [0] * 3
    while any(start < x.shape[1] for start, x in zip(at, streams, strict=True)):
        going = [i for i in range(3) if at[i] < streams[i].shape[1]]
        jobs = []
        for i in going:
            first = max(0, at[i] - generator.choice([0, 0, 30]))
            at[i] = min(at[i] + generator.choice([4, 15, 16]), streams[i].shape[1])
            jobs.append(
                ReadJob(
                    readers[i],
                    streams[i][:, first : at[i]],
                    first,
                    then="finish" if at[i] == streams[i].shape[1] else "listen",
                )
            )
        for i, reading in zip(going, read(head, jobs), strict=True):
            tokens[i] += reading.tokens
            n_read[i] += len(reading.waits)
    for i, (reader, frames) in enumerate(zip(readers, streams, strict=True)):
        tokens[i] += reader.commit_draft()
        expected = _expected(head, frames, LookPolicy(biases[i]))
        assert len(expected) > 8
        assert _seen(tokens[i]) == expected
        assert n_read[i] == frames.shape[1] // 2
        assert reader.end == n_read[i] * HEAD_FRAME_SAMPLES


def test_greedy_and_beam_share_a_batch(head: TransducerHead) -> None:
    """Each reader keeps its own number of hypotheses."""
    frames = _frames(100, seed=7)
    alone = [_reader(head, beam_size=size) for size in (1, 4)]
    for reader in alone:
        read(head, [ReadJob(reader, frames, 0, then="finish")])
    together = [_reader(head, beam_size=size) for size in (1, 4)]
    read(head, [ReadJob(reader, frames, 0, then="finish") for reader in together])
    for one, other in zip(alone, together, strict=True):
        assert _seen(one.commit_draft()) == _seen(other.commit_draft())


def test_memory_can_be_used_again(head: TransducerHead) -> None:
    """A reader in a used state reads what one in a fresh state reads."""
    frames, state = _frames(100, seed=9), head.init_state()
    seen = []
    for policy in (LookPolicy(2.0), LookPolicy(-1.0)):
        reader = TransducerReader(head, VOCABULARY, policy=policy, timing=TIMING, state=state)
        read(head, [ReadJob(reader, frames, 0, then="finish")])
        seen.append(_seen(reader.commit_draft()))
    fresh = _reader(head, bias=-1.0)
    read(head, [ReadJob(fresh, frames, 0, then="finish")])
    assert seen[1] == _seen(fresh.commit_draft())
    assert state.n_bytes == sum(ring.shape[0] * TINY_HEAD.width * 8 for ring in _rings(state))


def _rings(state: HeadState) -> list[torch.Tensor]:
    return [ring for block in state.lookahead.blocks for ring in block.tensors]


def test_a_stream_of_nothing_ends(head: TransducerHead) -> None:
    """Without a single frame, nothing is read."""
    reader = _reader(head)
    (reading,) = read(head, [ReadJob(reader, reader.no_frames, 0, then="finish")])
    assert (reading, reader.draft, reader.end) == (Reading((), ()), (), 0)


def test_waits_are_what_the_frames_waited(head: TransducerHead) -> None:
    """Fed one head frame at a time, an output's wait is the number of frames that came after its own."""
    reader, frames = _reader(head, bias=1.0), _frames(80)
    seen = 0
    for at in range(0, 80, 2):
        (reading,) = read(head, [ReadJob(reader, frames[:, at : at + 2], at)])
        assert reading.waits == tuple(at // 2 - (seen + i) for i in range(len(reading.waits)))
        seen += len(reading.waits)
    assert 30 < seen <= 40


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_peek_is_shown_and_forgotten(head: TransducerHead, beam_size: int) -> None:
    """What provisional frames say is the draft until the next job; the text is as without them."""
    head = copy.deepcopy(head)
    with torch.no_grad():
        head.transducer.out.bias[head.transducer.blank] -= 2  # also a beam has something to say
    frames, provisional = _frames(120, seed=11), _frames(12, seed=12)
    plain, peeking = (_reader(head, beam_size=beam_size) for _ in range(2))
    texts: list[list[Token]] = [[], []]
    n_other = 0
    for at in range(0, 120, 12):
        for reader, text in zip((plain, peeking), texts, strict=True):
            (reading,) = read(head, [ReadJob(reader, frames[:, at : at + 12], at)])
            text += reading.tokens
        before = peeking.draft
        assert _seen(list(before)) == _seen(list(plain.draft))
        (reading,) = read(head, [ReadJob(peeking, provisional, at + 12, "peek")])
        assert reading == Reading((), ())
        n_other += _seen(list(peeking.draft)) != _seen(list(before))
    assert n_other
    for reader, text in zip((plain, peeking), texts, strict=True):
        (reading,) = read(head, [ReadJob(reader, reader.no_frames, 120, "finish")])
        text += [*reading.tokens, *reader.commit_draft()]
    assert _seen(texts[0]) == _seen(texts[1]) and texts[0]


def test_a_flush_reads_everything_once_and_takes_the_silence_back(head: TransducerHead) -> None:
    """Its text is that of a stream that ends there; what comes later is read as if it had not happened."""
    frames, silence = _frames(121, seed=4), torch.zeros(1, 15, TINY_HEAD.encoder_width, dtype=torch.float64)
    reader = _reader(head, bias=2.0)
    tokens: list[Token] = []
    waits: list[int] = []
    for at in range(0, 61, 10):
        (reading,) = read(head, [ReadJob(reader, frames[:, at : min(at + 10, 61)], at)])
        tokens, waits = [*tokens, *reading.tokens], [*waits, *reading.waits]
    n_unread = 30 - len(waits)
    assert n_unread > 0
    (flushed,) = read(head, [ReadJob(reader, silence, 61, then="flush")])
    assert len(flushed.waits) == n_unread
    assert reader.draft == ()
    assert reader.end == 30 * HEAD_FRAME_SAMPLES
    ended_there = _all_tokens(head, torch.cat([frames[:, :61], silence], dim=1))
    assert _seen([*tokens, *flushed.tokens]) == _seen(ended_there)
    later: list[Token] = []
    n_later = 0
    for at in range(61, 121, 12):
        (reading,) = read(head, [ReadJob(reader, frames[:, at : at + 12], at)])
        later, n_later = [*later, *reading.tokens], n_later + len(reading.waits)
    (reading,) = read(head, [ReadJob(reader, frames[:, 121:], 121, then="finish")])
    later += [*reading.tokens, *reader.commit_draft()]
    assert n_later + len(reading.waits) == 30
    settled = 40 * HEAD_FRAME_SAMPLES  # the predictor no longer sees what was said before the flush
    expected = [seen for seen in _seen(_all_tokens(head, frames)) if seen[1] > settled]
    assert [seen for seen in _seen(later) if seen[1] > settled] == expected


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("broken", ["ln_post", "transducer.out"])
def test_a_failed_step_leaves_all_streams_as_they_were(beam_size: int, broken: str) -> None:
    """After an error in the model, reading again gives what an undisturbed reader reads."""
    head = tiny_head(0).double()
    frames = [_frames(90, seed=seed) for seed in (1, 2)]
    let_speak(head, head(torch.cat(frames, dim=1), torch.tensor([90])).frames)
    readers = [_reader(head, beam_size=beam_size, bias=1.0) for _ in frames]
    tokens: list[list[Token]] = [[], []]
    for at in range(0, 90, 15):
        jobs = [
            ReadJob(reader, x[:, at : at + 15], at, "finish" if at == 75 else "listen")
            for reader, x in zip(readers, frames, strict=True)
        ]
        hook = head.get_submodule(broken).register_forward_pre_hook(_fail)
        with pytest.raises(RuntimeError, match="broken"):
            read(head, jobs)
        hook.remove()
        for i, job in enumerate(jobs):
            (reading,) = read(head, [job])
            tokens[i] += reading.tokens
    for reader, x, said in zip(readers, frames, tokens, strict=True):
        undisturbed = _reader(head, beam_size=beam_size, bias=1.0)
        (reading,) = read(head, [ReadJob(undisturbed, x, 0, "finish")])
        expected = [*reading.tokens, *undisturbed.commit_draft()]
        assert expected
        assert _seen([*said, *reader.commit_draft()]) == _seen(expected)


def _fail(*_: object) -> None:
    raise RuntimeError("broken")


def _all_tokens(head: TransducerHead, frames: torch.Tensor) -> list[Token]:
    reader = _reader(head, bias=2.0)
    (reading,) = read(head, [ReadJob(reader, frames, 0, then="finish")])
    return [*reading.tokens, *reader.commit_draft()]


def _say(reader: TransducerReader, text: str) -> Reading:
    """Let the search of a reader have found a text."""
    state = reader._search
    for token in TruncatedBpe.of(TOKENIZER, TINY_HEAD.n_tokens).encode(text):
        state.n_frames += 1
        state.hypotheses = [h.extended(Emission(token, -0.1, state.n_frames - 1)) for h in state.hypotheses]
    return reader._take((), ReadJob(reader, reader.no_frames, 0), reader._mark())


def test_the_newest_word_stays_open(head: TransducerHead) -> None:
    """A word is committed when the next begins, with its punctuation; before, it may still grow."""
    reader = _reader(head)
    committed = [*_say(reader, " the b").tokens, *_say(reader, "oat,").tokens]
    assert VOCABULARY.text(t.id for t in committed) == " the"
    assert VOCABULARY.text(t.id for t in reader.draft) == " boat,"
    committed += _say(reader, " a").tokens
    assert VOCABULARY.text(t.id for t in committed) == " the boat,"
    committed += reader.commit_draft()
    assert VOCABULARY.text(t.id for t in committed) == " the boat, a"
    assert reader.draft == ()


@pytest.mark.parametrize("text", [" to be.", " to be", "."])
def test_a_full_stop_can_be_forgotten(head: TransducerHead, text: str) -> None:
    """What is said next follows the words before the mark; a word is no mark."""
    reader = _reader(head)
    _say(reader, text)
    reader.commit_draft()
    reader.forget_final_mark()
    bpe = TruncatedBpe.of(TOKENIZER, TINY_HEAD.n_tokens)
    said = [*head.transducer.first_context, *bpe.encode(text.rstrip("."))]
    assert [h.context for h in reader._search.hypotheses] == [tuple(said[-2:])]


def test_a_word_without_end_is_committed(head: TransducerHead) -> None:
    """Garbage without blanks cannot make the draft grow for ever."""
    reader = _reader(head)
    for _ in range(100):
        _say(reader, "xq")
        assert len(reader.draft) <= 26


def test_words_have_times_and_confidences(head: TransducerHead) -> None:
    """A word begins and ends where the head's timing says, without overlaps."""
    reader = _reader(head)
    tokens = [*_say(reader, " to be, or").tokens, *reader.commit_draft()]
    words = build_words(tokens, VOCABULARY, n_committed=len(tokens), start=0, end=100_000)
    assert [word.text for word in words] == ["to", "be,", "or"]
    assert all(word.confidence == pytest.approx(0.905, abs=1e-3) for word in words)
    assert all(a.end <= b.start for a, b in zip(words, words[1:], strict=False))
    last = [token for token in tokens if token.peak <= words[-1].end + TIMING.lag][-1]
    assert words[-1].end == last.peak - TIMING.lag
