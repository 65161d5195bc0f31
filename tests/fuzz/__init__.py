"""Parsers and decoders against bytes that nobody meant: targets, what was found, hypothesis, atheris."""
