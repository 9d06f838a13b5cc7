"""Adapters of the attention family: one file a method."""
