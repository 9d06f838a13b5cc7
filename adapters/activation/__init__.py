"""Activation sparsity: which channels of a token become zero before they meet the weights.

| module | subject |
| --- | --- |
| `base` | the lifecycle: sites, calibration, rules, token scopes, counting |
| `_tokens` | phase and place of the tokens of a forward pass |
| `_distribution` | quantiles of scores from one pass over a text |
| `_greedy` | TEAL's search for the sparsity of each site |
| `_mlp` | activation functions and down projections of MLPs, in any architecture |
"""
