"""Reports: from stored cells to tables, figures, a site, and gates.

    collect("results/")                          the tidy table: one row a cell, phase and metric, with its verdict
    tables.print_terminal(table)                 for a terminal; also Markdown, CSV, JSON, LaTeX and Parquet
    figures.write_figures(table, "figures/")     quality against sparsity and FLOPs
    safe.safe_sparsities(table)                  how sparse each method may be
    quality.sparsity_at_ratio(table)             how sparse at perplexity ratio 1.01; `over_tasks`, `knees`, ECE
    site.build_site(["results/"], "site/")       the static leaderboard
    check.check("main/", "branch/")              has anything become worse; `gate_formats` prints it
    check.compare("a/", "b/")                    two results folders, or two lm-eval logs
    verify.verify("results/")                    every number again from its samples

In between: `sources` opens results folders, `pairing` says what may be compared, `comparisons` and `verdicts` judge,
`views` and the `*_pages` modules lay out the site, and `notation` is how numbers, verdicts and names are written.
"""
