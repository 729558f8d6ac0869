"""The posterior mean of the data given a noised row: the one function that costs time.

Latents and a prepared reference come in; means, and for densities second moments, go out with their certified error.
``posterior`` chooses the engine: dense sums by torch (``attention``), or clusters on CPUs (``cpu``) and GPUs
(``cuda``). It knows neither solvers nor schedules.
"""
