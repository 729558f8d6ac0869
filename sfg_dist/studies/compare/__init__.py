"""`sfg compare`: this package beside its peers, under one wall-clock budget on one split.

The peers are fitted on plain tensors in the flow's coordinates (``peers``, ``fitting``); this package runs its ordinary
stages (``ours``); both are judged by the same code in the user's units (``judging``). ``run`` puts the cells in order.
"""

from sfg_dist.studies.compare.run import compare

__all__ = ["compare"]
