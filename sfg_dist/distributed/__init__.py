"""Labels by workers and the fit by ranks, each with Ray or in one process.

What both share is here: the Ray cluster, its nodes, where workers fit, and stopping in time. This is the only room that
imports ray, and it does so inside the functions that need it. It may not import the pipeline or what lies above.
"""
