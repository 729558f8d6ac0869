"""Sums over clusters on GPUs: Triton kernels that make no table of all pairs.

Rows and blocks of the reference come in; sums and bounds on their error go out. Only ``posterior`` may import this
folder. Without a GPU the kernels run under Triton's interpreter.
"""
