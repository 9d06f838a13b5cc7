"""One engine for all language-model tasks: shared prefixes, packed rows, exact phases."""
