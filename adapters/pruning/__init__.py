"""Weight pruning and what competes with it: what the linear layers of the decoder blocks lose, by method.

| module | subject |
| --- | --- |
| `base` | masks: sites, calibration, compare groups, layer ratios, attaching and restoring |
| `_groups` | masks with an exact number of zeros in each compare group |
| `_ratios` | sparsities of layers whose mean is the target |
| `_allocation` | what those are decided by: outliers, sensitivities, a search |
| `_search` | EvoPress's search |
| `_gradients` | squared gradients |
| `_storing` | weights in a form of their own: codes, groups, factors |
| `_quantise` | grids and k-means |
| `_ranks` | ranks of many matrices from one threshold |
| `_removal` | blocks and MLP channels that are taken out |
| `_influence` | how much a block changes what passes through it |
| `_unavailable` | methods that are listed and cannot run |
| `_obs` | SparseGPT's and GPTQ's update |
| `_swaps` | DSnoT's swaps |
"""
