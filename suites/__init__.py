"""Suites and tasks as YAML; `sparsebench list suites` and `sparsebench list tasks` name them."""
