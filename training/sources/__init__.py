"""Readers of the layouts in which recordings and transcripts come.

:func:`read_source` finds out which layout a path has and yields what it holds, entry by entry; what cannot be
used is a :class:`Problem` with its place, and reading goes on behind it.
"""

from training.sources.detect import LAYOUTS, read_source
from training.sources.entries import Entry, Problem, SourceOptions

__all__ = ["LAYOUTS", "Entry", "Problem", "SourceOptions", "read_source"]
