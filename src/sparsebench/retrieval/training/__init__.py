"""Training small learned-sparse encoders on a collection: the cells of one framework under one budget.

- `settings`: what is trained, on what, for how long, as a YAML file states it
- `model`: the cells: a query and a document encoder over one masked language model
- `losses`: ranking losses and what keeps vectors sparse
- `examples`: queries with documents to tell apart, and a teacher's scores
- `train`: the loop, its checkpoints, and the folder that a `sparse-encoder` system loads
"""
