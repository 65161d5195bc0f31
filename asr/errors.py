"""Every error that foresound raises for a caller's mistake.

ForesoundError
├── CheckpointError   Whisper weights that are missing, damaged or foreign
├── AdapterError      an adapter or head that cannot be read or fits other weights
├── AudioError        audio that cannot be read or holds unusable samples
└── OptionError       an option outside its valid values (also a ValueError)
"""


class ForesoundError(Exception):
    """Base of all foresound errors; its text says what was wrong and what to do."""


class CheckpointError(ForesoundError):
    """Whisper weights that are missing, damaged or not what was expected."""


class AdapterError(ForesoundError):
    """An adapter or transducer head that cannot be read or was made for other weights."""


class AudioError(ForesoundError):
    """Audio that cannot be read, or samples that are not finite numbers."""


class OptionError(ForesoundError, ValueError):
    """An option outside its valid values."""
