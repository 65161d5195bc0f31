"""The search is tested with a scripted decoder: what it hears decides what it says, without weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from whisper.model import Whisper
from whisper.tokenizer import get_tokenizer

from asr.decoder import Decoder, DecoderJob, DecoderResult, FrameCache, SelfCache
from asr.encoder import FRAME_SAMPLES
from asr.rules import Context, LoopGuard, RateCap, StartWithAWord, SuppressTokens, default_rules
from asr.search import MAX_DRAFT_TOKENS, MAX_OPEN_TOKENS, Search, Steps
from asr.words import Token, Vocabulary

TOKENIZER = get_tokenizer(False)
VOCABULARY = Vocabulary(TOKENIZER)
EOT = TOKENIZER.eot
N_VOCAB = 51864
START = list(TOKENIZER.sot_sequence_including_notimestamps)
T = TypeVar("T")
Script = Callable[[tuple[int, ...], int], dict[int, float]]  # (text so far, frames heard) -> probabilities


class ScriptedDecoder:
    """Stands in for :class:`asr.decoder.Decoder`; its caches hold token ids."""

    n_ctx = 448

    def __init__(self, script: Script) -> None:
        self.script = script
        self.weights = type("Weights", (), {"positional_embedding": torch.zeros(1)})()
        self.n_stepped = 0

    def new_self_cache(self, *, n_rows: int = 1) -> SelfCache:
        shape = (1, n_rows, self.n_ctx, 1)
        return SelfCache(torch.zeros(shape), torch.zeros(shape))

    def step(self, jobs: Sequence[DecoderJob]) -> list[DecoderResult]:
        return [self._step(job) for job in jobs]

    def _step(self, job: DecoderJob) -> DecoderResult:
        n_rows, n_new = job.tokens.shape
        self.n_stepped += n_rows * n_new
        start = job.text.n_tokens
        job.text.reserve(start + n_new)
        job.text.keys[0, :, start : start + n_new, 0] = job.tokens.float()
        job.text.n_tokens += n_new
        logits = torch.full((n_rows, job.n_logits, N_VOCAB), -30.0)
        for row in range(n_rows):
            for k in range(job.n_logits):
                ids = tuple(int(i) for i in job.text.keys[0, row, : start + n_new - job.n_logits + k + 1, 0])
                for token, probability in self.script(ids[len(START) :], job.cross.n_frames).items():
                    logits[row, k, token] = math.log(probability)
        return DecoderResult(logits, torch.zeros(n_rows, 1, n_new, job.cross.n_frames))


class Alone:
    """A search with its own decoder, whose methods do at once what a search asks for."""

    def __init__(
        self, decoder: Decoder | ScriptedDecoder, *, beam_size: int = 1, open_tokens: int = 2
    ) -> None:
        self.decoder = decoder
        self.search = Search(
            decoder,  # type: ignore[arg-type]
            default_rules(TOKENIZER, n_vocab=N_VOCAB),
            VOCABULARY,
            cache=decoder.new_self_cache(),
            eot=EOT,
            beam_size=beam_size,
            open_tokens=open_tokens,
        )
        self.search.restart(START)
        self.final_end = 10**9

    @property
    def committed(self) -> list[Token]:
        return self.search.committed

    @property
    def draft(self) -> tuple[Token, ...]:
        return self.search.draft

    def advance(self, cross: FrameCache) -> list[Token]:
        n_committed = len(self.committed)
        return self.run(self.search.advance(cross, n_in_segment=n_committed, final_end=self.final_end))

    def run(self, steps: Steps[T]) -> T:
        answer: DecoderResult | None = None
        while True:
            try:
                job = steps.send(answer)  # type: ignore[arg-type]
            except StopIteration as stop:
                return stop.value
            answer = self.decoder.step([job])[0]


def heard(n_frames: int) -> FrameCache:
    """A cache of so many frames, without content."""
    return FrameCache(torch.zeros(0), n_frames)


def search(script: Script, *, beam_size: int = 1, open_tokens: int = 2) -> Alone:
    """A search over a scripted decoder, at the start of a window."""
    return Alone(ScriptedDecoder(script), beam_size=beam_size, open_tokens=open_tokens)


def says(text: str, *, frames_per_token: int = 10) -> Script:
    """A script that says ``text``, one token per so many frames."""
    ids = TOKENIZER.encode(text)

    def script(so_far: tuple[int, ...], n_frames: int) -> dict[int, float]:
        n = len(so_far)
        due = n < len(ids) and so_far == tuple(ids[:n]) and n_frames >= frames_per_token * (n + 1)
        return {ids[n]: 0.98, EOT: 0.02} if due else {EOT: 0.99, 220: 0.01}

    return script


def text(made: Alone) -> tuple[str, str]:
    """Committed and open text."""
    return VOCABULARY.text(t.id for t in made.committed), VOCABULARY.text(t.id for t in made.draft)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_words_come_with_the_frames(beam_size: int) -> None:
    """Text grows as frames arrive, the newest two tokens stay open, and only whole words are committed."""
    made = search(says(" one two three un-real four"), beam_size=beam_size)
    seen = []
    for n_frames in (5, 10, 20, 30, 40, 50, 60, 70):
        made.advance(heard(n_frames))
        seen.append(text(made))
    assert seen[:4] == [("", ""), ("", " one"), ("", " one two"), (" one", " two three")]
    assert seen[-1][0] + seen[-1][1] == " one two three un-real four"
    assert all(len(TOKENIZER.encode(draft)) >= 2 for _, draft in seen[2:])
    assert all(not draft or draft.startswith(" ") for _, draft in seen)


def test_open_tokens_are_replaced_and_committed_ones_are_not() -> None:
    """Later frames may change the draft; what is committed stays whatever the decoder would rather say."""
    late = 100

    def script(so_far: tuple[int, ...], n_frames: int) -> dict[int, float]:
        words = " red green blue sky" if n_frames < late else " black green brown sea"
        ids = TOKENIZER.encode(words)
        return {ids[len(so_far)] if len(so_far) < min(len(ids), n_frames // 10) else EOT: 0.9}

    made = search(script)
    made.advance(heard(40))
    assert text(made) == (" red green", " blue sky")
    made.advance(heard(late))
    assert text(made) == (" red green", " brown sea")


@pytest.mark.parametrize("beam_size", [1, 4])
def test_nothing_open_commits_everything(beam_size: int) -> None:
    """With no open tokens all that is said is committed at once."""
    made = search(says(" one two three"), beam_size=beam_size, open_tokens=0)
    new = made.advance(heard(30))
    assert text(made) == (" one two three", "") and len(new) == 3


def test_advance_returns_what_is_committed_now() -> None:
    """The returned tokens add up to the committed ones."""
    made = search(says(" one two three four five"))
    new = [token for n in range(10, 60, 10) for token in made.advance(heard(n))]
    assert new == made.committed and len(new) == 3
    assert made.search.commit(len(made.draft)) == made.committed[-2:]


def test_old_tokens_are_not_decoded_again() -> None:
    """A chunk costs the open tail and what is new, not the text before."""
    made = search(says(" word" * 3 + " and another thing that goes on for many more words than before here"))
    costs = []
    for n_frames in range(10, 180, 10):
        before = made.decoder.n_stepped  # type: ignore[union-attr]
        made.advance(heard(n_frames))
        costs.append(made.decoder.n_stepped - before)  # type: ignore[union-attr]
    assert max(costs[1:]) <= 5


def test_beam_finds_what_greedy_misses() -> None:
    """A likelier second word makes up for a slightly less likely first one."""
    wet, wide, way = TOKENIZER.encode(" wet")[0], TOKENIZER.encode(" wide")[0], TOKENIZER.encode(" way")[0]

    def script(so_far: tuple[int, ...], n_frames: int) -> dict[int, float]:
        if not so_far:
            return {wet: 0.55, wide: 0.45}
        if so_far == (wide,):
            return {way: 0.95, EOT: 0.05}
        if so_far == (wet,):
            return {EOT: 0.3, way: 0.3, wide: 0.3}
        return {EOT: 0.99}

    greedy, beam = search(script), search(script, beam_size=3)
    greedy.advance(heard(50))
    beam.advance(heard(50))
    assert text(greedy)[1].startswith(" wet")
    assert text(beam)[1] == " wide way"


def test_beam_commits_what_all_hypotheses_share() -> None:
    """A word that one of the hypotheses spells differently stays open."""
    sure, a, b = TOKENIZER.encode(" sure")[0], TOKENIZER.encode(" there")[0], TOKENIZER.encode(" their")[0]
    rest = TOKENIZER.encode(" is one more thing")

    def script(so_far: tuple[int, ...], n_frames: int) -> dict[int, float]:
        n = len(so_far)
        if n == 0:
            return {sure: 0.999}
        if n == 1:
            return {a: 0.5, b: 0.45}
        return {rest[n - 2]: 0.999} if n - 2 < len(rest) else {EOT: 0.999}

    made = search(script, beam_size=2)
    made.advance(heard(100))
    assert text(made) == (" sure", " there is one more thing")


def test_beam_commits_a_draft_that_gets_too_long() -> None:
    """Hypotheses that never agree do not hold the text back for ever."""
    a, b = TOKENIZER.encode(" there")[0], TOKENIZER.encode(" their")[0]
    rest = TOKENIZER.encode(" and so on and on it goes for ever while nobody agrees about the first word")

    def script(so_far: tuple[int, ...], n_frames: int) -> dict[int, float]:
        n = len(so_far)
        if n == 0:
            return {a: 0.5, b: 0.45}
        cycle = rest + TOKENIZER.encode(" of this rather long sentence with its two beginnings, my friends")
        return {cycle[n - 1]: 0.999} if n - 1 < len(cycle) else {EOT: 0.999}

    made = search(script, beam_size=2)
    made.advance(heard(400))
    assert len(made.draft) <= MAX_DRAFT_TOKENS
    assert text(made)[0].startswith(" there and so on")


def test_runaway_text_is_cut() -> None:
    """A decoder that never stops is stopped, chunk after chunk, and the search goes on."""
    numbers = [TOKENIZER.encode(f" {n}")[0] for n in range(100, 400)]

    def script(so_far: tuple[int, ...], n_frames: int) -> dict[int, float]:
        return {numbers[len(so_far) % len(numbers)]: 0.9}

    made = search(script)
    for n_frames in (500, 1000, 1400):
        made.advance(heard(n_frames))
        assert len(made.draft) <= MAX_OPEN_TOKENS
    while not made.search.is_full and made.advance(heard(1400)):
        pass
    assert len(made.committed) <= 400


@torch.inference_mode()
def test_random_weights_beam_of_one_is_greedy(tiny_model: Whisper) -> None:
    """Beam search with one hypothesis makes greedy search's choices on a real decoder."""
    decoder = Decoder(tiny_model.decoder, tiny_model.alignment_heads)
    greedy, beam = Alone(decoder), Alone(decoder)
    inner = beam.search
    inner._beam_cache = decoder.new_self_cache(n_rows=1)
    frames = torch.randn(1, 400, tiny_model.dims.n_audio_state, generator=torch.Generator().manual_seed(3))
    cross = decoder.new_frame_cache(max_frames=400)
    for start in range(0, 400, 50):
        decoder.append_frames([(frames[:, start : start + 50], cross)])
        greedy.advance(cross)
        sequence = [*START, *(t.id for t in beam.committed)]
        inner._n_in_segment = len(beam.committed)
        best = beam.run(inner._beam(sequence[inner._cache.n_tokens :], cross))[0]
        inner._cache.truncate(len(sequence) - 1)
        inner.draft = best.tokens
        inner.commit(inner._n_certain([best], beam.final_end))
        assert [t.id for t in beam.committed] == [t.id for t in greedy.committed]
        assert [t.id for t in beam.draft] == [t.id for t in greedy.draft]
    assert len(greedy.committed) > 10


@torch.inference_mode()
def test_random_weights_same_frames_same_text(tiny_model: Whisper) -> None:
    """Without new frames nothing changes, and the draft equals decoding everything from scratch."""
    decoder = Decoder(tiny_model.decoder, tiny_model.alignment_heads)
    made = Alone(decoder, open_tokens=6)
    frames = torch.randn(1, 60, tiny_model.dims.n_audio_state, generator=torch.Generator().manual_seed(4))
    cross = FrameCache(frames, frames.shape[1])
    made.advance(cross)
    draft = [token.id for token in made.draft]
    for _ in range(3):
        assert made.advance(cross) == []
        assert [token.id for token in made.draft] == draft
    scratch = Alone(decoder, open_tokens=6)
    scratch.advance(cross)
    assert [t.id for t in scratch.committed + list(scratch.draft)] == [t.id for t in made.committed] + draft


class LookingDecoder(ScriptedDecoder):
    """Looks most at the window's start, then at a word of long ago, and only then at what it will say."""

    def _step(self, job: DecoderJob) -> DecoderResult:
        first = job.text.n_tokens - len(START) + 1  # text tokens before the first position's prediction
        result = super()._step(job)
        for u in range(job.tokens.shape[1]):
            due = max(0, min(10 * (first + u) + 5, job.cross.n_frames - 1))
            result.attention[:, :, u, due] = 0.1
            result.attention[:, :, u, 5] += 0.2 * (due > 50)
            result.attention[:, :, u, :2] = 0.3
        return result


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("step", [10, 30])
def test_words_are_where_new_attention_is(beam_size: int, step: int) -> None:
    """Not where attention rests, on a window's first frames, nor at words of long ago."""
    text = " one two three four five six seven eight nine ten"
    made = Alone(LookingDecoder(says(text)), beam_size=beam_size)
    for n_frames in range(step, 121, step):
        made.advance(heard(n_frames))
    tokens = [*made.committed, *made.draft]
    assert [token.peak / FRAME_SAMPLES for token in tokens] == [10 * u + 5 for u in range(len(tokens))]
    assert len(tokens) == 10


@torch.inference_mode()
def test_attention_equals_one_pass(tiny_model: Whisper) -> None:
    """Looking back gives the attention that a single pass over the whole text gives."""
    decoder = Decoder(tiny_model.decoder, tiny_model.alignment_heads)
    made = Alone(decoder, open_tokens=0)
    frames = torch.randn(1, 60, tiny_model.dims.n_audio_state, generator=torch.Generator().manual_seed(5))
    cross = FrameCache(frames, frames.shape[1])
    made.advance(cross)
    n = len(made.committed)
    tokens = torch.tensor([[*START, *(token.id for token in made.committed)]])
    whole = decoder.step([DecoderJob(tokens, decoder.new_self_cache(), cross)])[0].attention
    seen = made.run(made.search.attention(n, cross))
    torch.testing.assert_close(seen, whole[0, :, -n - 1 :], atol=1e-5, rtol=1e-4)


def apply(rule: object, tokens: Sequence[int], *, favourite: int, heard_s: float = 10.0) -> Tensor:
    """Logits after a rule, where ``favourite`` was the likeliest and end-of-text came second."""
    logits = torch.zeros(N_VOCAB)
    logits[favourite], logits[EOT] = 5.0, 2.0
    rule.apply(logits, Context(list(tokens), heard_s, len(tokens)))  # type: ignore[attr-defined]
    return logits


def test_special_and_non_speech_tokens_are_suppressed() -> None:
    """Music notes, brackets, timestamps and special tokens never win; end-of-text may."""
    rule = SuppressTokens(TOKENIZER, n_vocab=N_VOCAB)
    for token in (*TOKENIZER.non_speech_tokens[:5], TOKENIZER.timestamp_begin + 7, TOKENIZER.sot):
        assert int(apply(rule, [], favourite=token).argmax()) == EOT


@pytest.mark.parametrize("text", [" ", ",", ".", "'m", "ing", " -"])
def test_a_segment_begins_with_a_word(text: str) -> None:
    """No blank, mark or word's ending comes first; later they may."""
    rule = StartWithAWord(TOKENIZER, Vocabulary(TOKENIZER), n_vocab=N_VOCAB)
    token = TOKENIZER.encode(text)[0]
    assert int(apply(rule, [], favourite=token).argmax()) == EOT
    assert int(apply(rule, [5], favourite=token).argmax()) == token
    word = TOKENIZER.encode(" word")[0]
    assert int(apply(rule, [], favourite=word).argmax()) == word


def test_rate_is_capped() -> None:
    """More tokens than can be spoken end the text."""
    word = TOKENIZER.encode(" word")[0]
    assert int(apply(RateCap(TOKENIZER), [word] * 5, favourite=word, heard_s=1.0).argmax()) == word
    assert int(apply(RateCap(TOKENIZER), [word] * 40, favourite=word, heard_s=1.0).argmax()) == EOT


@pytest.mark.parametrize(
    ("said", "next_text", "is_banned"),
    [
        (" no", " no", False),
        (" no no no", " no", False),
        (" no no no no", " no", True),
        (" we can do it, we can do", " it", False),
        (" we can do it, we can do it, we can do it", ",", True),
    ],
)
def test_loops_are_broken(said: str, next_text: str, is_banned: bool) -> None:
    """A short phrase may come four times and a longer one twice; then something else must be said."""
    tokens = TOKENIZER.encode(said)
    (favourite,) = TOKENIZER.encode(next_text)
    logits = apply(LoopGuard(), tokens, favourite=favourite)
    assert (int(logits.argmax()) != favourite) == is_banned
