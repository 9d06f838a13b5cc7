"""Published findings: what each says, the rule that decides it, and whether results hold it.

- `definition`: a finding as its YAML file states it, with the suite to run and the hash of its rule
- `rules`: the kinds of rule, as data
- `reproduce`: run a finding's suite, or take results that are there, and apply the rule
- `answer`, `text`: what comes of it, and how it is printed
- `results`, `joint`, `piecewise`: rows of results by method and budget, resampled jointly, and read between levels
- one module a kind of rule: `matched`, `first_to_fall`, `knee`, `contest`, `tolerance`, `contextual`, `interpolation`,
  `collections`, `reversals`
"""
