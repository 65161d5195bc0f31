"""The command line and other clients."""
