"""Named faults against real servers, and what clients and operators see of each; see docs/reliability.md."""
