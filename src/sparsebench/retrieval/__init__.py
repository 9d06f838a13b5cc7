"""Retrieval: collections in BEIR form, encoders, search engines, runs and their evaluation.

| module | subject |
| --- | --- |
| `collection`, `loaders` | what is searched and judged, and reading it |
| `bm25`, `encoders`, `sparse_vectors` | texts to vectors, and term budgets |
| `index`, `hits` | vectors to ranked documents |
| `run`, `evaluate`, `mteb` | what a system found, how good it is, and MTEB's forms of both |
| `fusion`, `feedback` | runs made of runs, and queries made of what was found |
"""
