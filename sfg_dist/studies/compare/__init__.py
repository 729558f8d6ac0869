"""`sfg compare`: this package beside its peers, under one wall-clock budget on one split.

The peers (``peers``) are fitted on plain tensors in the flow's coordinates; this package runs its ordinary stages
(``own``). Both are judged by the same code in the user's units (``judging``). ``run`` puts the cells in order: a cell
is the fit of one method with one seed.
"""

from sfg_dist.studies.compare.run import compare

__all__ = ["compare"]
