"""Languages as clients name them: ``en``, ``en-US``, ``EN_us``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def known_codes(names: Iterable[str], known: Sequence[str]) -> set[str]:
    """Return the codes of those languages that the recogniser knows.

    Args:
        names: With or without a region.
        known: The recogniser's codes; empty if they are not known, and every name is taken for one.
    """
    codes = {name.strip().lower().replace("_", "-") for name in names}
    codes = {code if code in known else code.partition("-")[0] for code in codes}
    return {code for code in codes if code and (code in known or not known)}
