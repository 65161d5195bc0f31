"""Hotwords: a token trie of the terms that a caller expects, and the boost that it gives to their tokens.

The trie and the boost work on sequences of token ids and know no model; only :func:`spellings` and
:func:`check_hotwords` look at texts. Nothing here has state: what a token gains follows from the tokens
before it, so one object serves every hypothesis of its stream. Axis letter: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asr.errors import OptionError
from asr.rules import Context

MAX_HOTWORDS = 100
MAX_HOTWORD_CHARS = 100
MAX_STRENGTH = 20.0
ROOT = 0  # the trie's node of a text that ends within no term


@dataclass(frozen=True)
class Strength:
    """How much is added to the log-probability of a listed term's tokens.

    Attributes:
        begin: For a token that begins a term and may as well begin something else.
        go_on: For every other token of a term, and for one that is a whole term.
    """

    begin: float
    go_on: float

    def __post_init__(self) -> None:
        """Refuse what is no boost."""
        for name, value in (("begin", self.begin), ("go_on", self.go_on)):
            if not 0 <= value <= MAX_STRENGTH:
                raise OptionError(f"the strength's {name} must be from 0 to {MAX_STRENGTH:g}, not {value}")


GREEDY_STRENGTH = Strength(begin=0.5, go_on=2.0)
BEAM_STRENGTH = Strength(begin=2.0, go_on=2.0)


@dataclass
class _Node:
    """A beginning of at least one term.

    Attributes:
        depth: How many tokens it has.
        n_unsure: How many of its newest tokens belong to no term that is complete.
        first: Node of the first of them.
        is_end: It is a whole term.
        children: Next token -> node.
        fallback: Node of the longest other term's beginning that its tokens end with.
    """

    depth: int
    n_unsure: int
    first: int = ROOT
    is_end: bool = False
    children: dict[int, int] = field(default_factory=dict)
    fallback: int = ROOT


class TokenTrie:
    """Every listed term's tokens, as an automaton (Aho and Corasick, 1975) that is stepped token by token.

    Attributes:
        max_depth: Tokens of the longest term.
    """

    def __init__(
        self, terms: Iterable[Sequence[int]], *, is_inside: Callable[[int], bool] = lambda token: False
    ) -> None:
        """Build it.

        Args:
            terms: Token sequences; empty ones are left out.
            is_inside: Whether a token goes on with the word before it. A term is complete only where no such
                token follows.
        """
        self._nodes = [_Node(depth=0, n_unsure=0)]
        for term in terms:
            self._add(term)
        self._link(is_inside)
        self.max_depth = max(node.depth for node in self._nodes)

    def __len__(self) -> int:
        """Number of different beginnings of terms."""
        return len(self._nodes) - 1

    def node(self, index: int) -> _Node:
        """The node with an index."""
        return self._nodes[index]

    def step(self, node: int, token: int) -> int:
        """The node after one more token."""
        while token not in self._nodes[node].children:
            if node == ROOT:
                return ROOT
            node = self._nodes[node].fallback
        return self._nodes[node].children[token]

    def walk(self, tokens: Sequence[int]) -> int:
        """The node at the end of a text: the longest beginning of a term that it ends with."""
        node = ROOT
        for token in tokens[len(tokens) - min(len(tokens), self.max_depth) :]:
            node = self.step(node, token)
        return node

    def next_nodes(self, node: int) -> Iterator[tuple[int, int]]:
        """Tokens that go on with a term whose beginning the text ends with, and where each leads.

        Tokens that merely begin a term, the root's children, are left out.
        """
        seen: set[int] = set()
        while node != ROOT:
            for token, child in self._nodes[node].children.items():
                if token not in seen:
                    seen.add(token)
                    yield token, child
            node = self._nodes[node].fallback

    def _add(self, term: Sequence[int]) -> None:
        node = self._nodes[ROOT]
        for depth, token in enumerate(term, start=1):
            if token not in node.children:
                index = len(self._nodes)
                node.children[token] = index
                self._nodes.append(_Node(depth, n_unsure=depth, first=index if depth == 1 else node.first))
            node = self._nodes[node.children[token]]
        node.is_end = bool(term)

    def _link(self, is_inside: Callable[[int], bool]) -> None:
        """Set what follows from the whole trie, parents first."""
        queue = [ROOT]
        for index in queue:
            node = self._nodes[index]
            for token, child_index in node.children.items():
                child = self._nodes[child_index]
                child.n_unsure = 1 if node.is_end and not is_inside(token) else node.n_unsure + 1
                child.fallback = self.step(node.fallback, token) if index != ROOT else ROOT
                queue.append(child_index)


class Biasing:
    """The boost of listed terms, as a decoding rule.

    A token that begins or goes on with a term gains; one that leaves a term half-said loses what the term's
    open tokens have gained, those that are not decided yet. So a search that compares hypotheses keeps a
    term's gain only where the term was completed. One that decides at once never pays for a decision; it asks
    :meth:`n_left` what it should decide anew.
    """

    def __init__(
        self,
        trie: TokenTrie,
        strength: Strength,
        *,
        n_vocab: int,
        inside: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare what every step needs.

        Args:
            trie: The terms.
            strength: What their tokens gain.
            n_vocab: Size of the vocabulary.
            inside: Boolean ``[V]``, tokens that go on with the word before; None: there are none.
            device: Where the logits are.
        """
        self._trie = trie
        self._strength = strength
        self._inside = inside
        firsts = trie.node(ROOT).children
        self._begin = torch.zeros(n_vocab, device=device)
        for token, node in firsts.items():
            self._begin[token] = self._first_gain(node)

    def apply(self, logits: Tensor, context: Context) -> None:
        """Add to the logits ``[V]`` what each next token gains, in place."""
        node = self._trie.walk(context.tokens)
        logits += self.gains(node, n_open=len(context.tokens) - context.n_decided)

    def gains(self, node: int, *, n_open: int) -> Tensor:
        """What every next token gains or loses.

        Args:
            node: Where the text before it ends in the trie.
            n_open: How many of that text's tokens may still be given up.

        Returns:
            ``[V]``, not to be written to.
        """
        if node == ROOT:
            return self._begin
        here = self._trie.node(node)
        loss = self._given(node, n_newest=min(here.n_unsure, n_open))
        gains = self._begin.clone()
        if not here.is_end:
            gains -= loss
        elif self._inside is not None:
            gains -= loss * self._inside
        for token, child in self._trie.next_nodes(node):
            there = self._trie.node(child)
            if there.depth == here.depth + 1:
                gains[token] = self._strength.go_on
            else:  # another term, which begins within the one that is left
                gains[token] += self._given(child, n_newest=min(there.depth, n_open + 1)) - self._begin[token]
        return gains

    def n_left(self, tokens: Sequence[int], token: int) -> int:
        """How many of the newest tokens belong to a term that ``token`` leaves half-said."""
        node = self._trie.walk(tokens)
        here, there = self._trie.node(node), self._trie.node(self._trie.step(node, token))
        is_complete = here.is_end and not (self._inside is not None and bool(self._inside[token]))
        return 0 if is_complete or there.depth > 1 else here.n_unsure

    def _given(self, node: int, *, n_newest: int) -> float:
        """What the newest ``n_newest`` tokens of a node's text have gained together."""
        reached = self._trie.node(node)
        has_first = n_newest == reached.depth
        return (n_newest - has_first) * self._strength.go_on + has_first * self._first_gain(reached.first)

    def _first_gain(self, node: int) -> float:
        """What a term's first token gains."""
        return self._strength.go_on if self._trie.node(node).is_end else self._strength.begin


def check_hotwords(hotwords: Sequence[str]) -> tuple[str, ...]:
    """The terms with single blanks, each once.

    Args:
        hotwords: What a caller gave.

    Returns:
        The terms in their order.

    Raises:
        OptionError: They are no list of at most ``MAX_HOTWORDS`` texts of at most ``MAX_HOTWORD_CHARS``.
    """
    if isinstance(hotwords, str):
        raise OptionError(f"hotwords must be a list of texts, not the one text {hotwords!r:.60}")
    if len(hotwords) > MAX_HOTWORDS:
        raise OptionError(f"hotwords must be at most {MAX_HOTWORDS} texts, not {len(hotwords)}")
    terms = []
    for index, term in enumerate(hotwords):
        if not isinstance(term, str):
            raise OptionError(f"hotwords[{index}] must be a text, not {term!r:.60}")
        if not 1 <= len(term.strip()) <= MAX_HOTWORD_CHARS:
            raise OptionError(
                f"hotwords[{index}] must have 1 to {MAX_HOTWORD_CHARS} characters besides blanks around it, "
                f"not {len(term.strip())}: {term!r:.60}"
            )
        terms.append(" ".join(term.split()))
    return tuple(dict.fromkeys(terms))


def spellings(term: str, *, has_blanks: bool) -> list[str]:
    """The ways in which a recogniser may write a term: as it is given, in lower case, capitalised.

    Args:
        term: Words separated by single blanks.
        has_blanks: Whether the language puts blanks between words; if so, each spelling begins with one.

    Returns:
        Different texts, first the term as it is given.
    """
    forms = [term, term.lower()]
    for form in (term, term.lower()):
        forms.append(_capitalised(form))
        forms.append(" ".join(map(_capitalised, form.split(" "))))
    return [f"{' ' * has_blanks}{form}" for form in dict.fromkeys(forms)]


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
