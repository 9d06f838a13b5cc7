"""Adapters of the activation family: one file a method."""
