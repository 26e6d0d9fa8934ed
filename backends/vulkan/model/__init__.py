"""Whole models on a device: what surrounds attention as kernels, in one program with it.

`builder` walks a geo function for given shapes: operators that only look at memory become views (`views`), chains of
element-wise ones one kernel (`pointwise`, `elementwise`), products (`matmul`), sums and extremes of rows (`rows`) and
lookups (`gather`) one each, and attention what its tile program becomes. `program` runs the result.
"""
