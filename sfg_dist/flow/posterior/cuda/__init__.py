"""The score's sums over clusters on GPUs: Triton kernels that make no table of all pairs.

Rows and blocks of the reference come in; sums and bounds on their error go out. Only the folder above may import this
one. Without a GPU the kernels run under Triton's interpreter.
"""
