"""Adapters of the retrieval family: one file a method."""
