"""`make matrix`: the package in fresh environments, from the oldest versions that it declares to the newest that exist.

Needs nothing but a Python and its standard library: every cell brings its own packages. `make newest` is the small one, of
transformers alone.
"""
