"""A random fuzz of the drop-in: stock, optimised and a float64 oracle go through the same calls and changes, and are compared.

`draw` makes a case out of one integer, `build` its models and inputs, `changes` what a user does to a model between calls,
`run` takes the three through it, `judge` compares, `dropout` says what holds where numbers cannot equal stock's, and
`mutants` are planted faults that show that the judge sees.
"""
