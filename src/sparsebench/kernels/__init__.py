"""Kernels that skip what a sparse method leaves out, for NVIDIA GPUs.

- `block_sparse_prefill`: attention over selected blocks of keys
- `paged_decode`: attention of one token over selected pages of the cache
- `masked_prefill`, `masked_decode`: attention over the keys that a mask names, of many tokens and of one
- `tallies`: what is counted of such masks; `block_mass`: attention weights summed over blocks
- `selection`: exact top-k lists for both
- `sparse_gemv`: matrix-vector products over active inputs
- `gemv_gpu`: products of a few tokens with what they keep; `gemv_cpu`: the same on a processor, by numba
- `semi_structured`: 2:4 weights through PyTorch
- `early`: launches while the kernel before still runs
- `counting`: where products count the zeros that they meet
- `energy`: joules through NVML
- `reference`: what they compute, in plain PyTorch

All but the last four and `gemv_cpu` need Triton and are imported by whoever uses them; TRITON_INTERPRET=1 runs them on
a CPU, for tests.
"""
