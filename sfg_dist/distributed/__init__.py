"""Labels by Ray actors and the data-parallel fit by Ray Train, each beside its twin in one process.

This is the only room that imports ray, and it does so inside the functions that need it.
"""
