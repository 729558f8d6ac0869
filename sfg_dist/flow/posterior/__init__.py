"""The posterior mean of the data given a noised row: the one function that costs time.

Noised rows and a prepared reference come in; means, for densities second moments too, go out with their certified
error. ``posterior`` chooses the engine: torch (``attention``), compiled kernels on CPUs (``cpu``) or GPUs (``cuda``).
Solvers, schedules but for ``spread``, and labels may not be imported.
"""
