"""The posterior mean of the data given a noised row, from which the score follows: the one function that costs time.

Noised rows and a prepared reference come in; means, for densities second moments too, go out with their certified
error. ``backends`` chooses the engine: torch (``attention``), or sums over a tree of clusters (``clusters``) by
compiled kernels on CPUs (``cpu``) or GPUs (``cuda``). Of the folder above, only ``spread`` may be imported.
"""
