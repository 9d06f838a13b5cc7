"""SparseBench: what a sparse method costs and keeps."""

__version__ = "0.1.0"
