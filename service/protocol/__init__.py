"""Sans-I/O adapters between wire formats and a session's commands and messages."""
