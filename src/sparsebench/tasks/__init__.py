"""Tasks: prompts, perplexity, retrieval, and any lm-eval task."""
