"""The score's sums over clusters on CPUs: numba kernels with vectors of eight, threads, and bounds on what is left out.

Rows and clusters come in; sums and bounds on their error go out. Solvers and schedules may not be imported.
"""
