"""Training and evaluation: weak alignment, causal finetuning, word error rate and latency."""
