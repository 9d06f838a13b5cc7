"""Weight pruning: which weights of the decoder blocks' linear layers become zero.

| module | subject |
| --- | --- |
| `base` | the lifecycle: sites, calibration, compare groups, layer ratios, attaching and restoring |
| `_groups` | masks with an exact number of zeros in each compare group |
| `_ratios` | sparsities of layers whose mean is the target |
| `_obs` | SparseGPT's update |
| `_swaps` | DSnoT's swaps |
"""
