"""What a checkpoint really holds: true zeros, patterns, bits, and which kernels could use them.

- `checkpoint`: the tensors of safetensors and GGUF files, read in pieces; pickles are never opened
- `patterns`: zeros, n:m groups, blocks, rows and columns, and distinct values of one tensor
- `kernels`: what could run faster for it
- `report`: all tensors together, as text and JSON
"""

from sparsebench.audit.report import Audit, audit, text, to_json

__all__ = ["Audit", "audit", "text", "to_json"]
