"""Activation sparsity: which channels of a token become zero before they meet the weights.

| module | subject |
| --- | --- |
| `base` | the lifecycle: sites, calibration, rules, token scopes, counting |
| `_tokens` | phase and place of the tokens of a forward pass |
| `_distribution` | quantiles of scores from one pass over a text |
| `_greedy` | TEAL's search for the sparsity of each site |
| `_mlp` | activation functions and projections of MLPs, in any architecture |
| `_attention` | projections of attention, in any architecture |
| `_masking` | masking what sites see, and counting |
| `_executed` | steps of decode that read what is kept and no more |
| `_prompt` | neurons chosen once for each sequence, from its prompt |
| `_sequences` | the sequences of a pass, and masking them by their prompts, or gathering what stays |
| `_low_rank` | singular components for what was left out |
| `_rotation` | turning inputs so that the columns of weights become orthogonal |
"""
