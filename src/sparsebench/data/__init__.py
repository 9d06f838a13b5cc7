"""Data by reference: where it comes from, its hash, and the data sets that need no download.

| module | subject |
| --- | --- |
| `references` | the grammar of model and data references |
| `sources` | `locate` a reference; `resolve` a list of alternatives to the first that is there |
| `wheels`, `hub`, `downloads` | the three places that are not on this machine |
| `cache`, `digests` | where fetched files are kept, and the hashes that name their content |
| `reading` | rows and text of json, jsonl, csv, parquet and txt files |
| `embedded/` | data sets made from the standard library and small packages |
| `catalogue` | the data sets that have a name |
"""

from __future__ import annotations
