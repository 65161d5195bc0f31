"""Texts as recognisers without punctuation write them: what Deepgram calls a word, and all that Vosk says."""

from __future__ import annotations

# At the ends of words only: what stands within one (o'clock, 3.5, twenty-one) belongs to it.
_MARKS = ".,;:!?\"'`…“”„‘’«»()[]{}—–-¿¡。、，！？：；（）「」『』"


def plain_word(text: str) -> str:
    """Return a word in lower case without the punctuation around it; punctuation alone stays.

    Args:
        text: One word.
    """
    return text.strip(_MARKS).lower() or text


def plain_text(text: str) -> str:
    """Return a text in lower case without punctuation.

    Args:
        text: Words with blanks between them.
    """
    return " ".join(plain_word(word) for word in text.split())
