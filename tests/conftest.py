"""Puts this folder on the path, so that tests can `import models`; and leaves out methods of other packages."""

from sparsebench.adapters import registry

# Those that happen to be installed are theirs to test: `sparsebench conform`.
registry._plugins = dict
