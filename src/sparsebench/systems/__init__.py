"""Systems: what is under test, a causal language model or a retriever, by reference or in memory."""
