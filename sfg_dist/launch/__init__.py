"""From a job file to a cluster: Slurm, Kubernetes through KubeRay, or a Ray cluster that runs already.

A job and a site's profile come in; a folder with all that the cluster needs goes out (``submission``) and is sent
(``send``), and the same modules ask after it. ``slurm_task`` is the program that then runs inside a Slurm job and
minds its walltime. This room imports neither torch nor ray, and only the job room.
"""

from sfg_dist.launch.profile import Profile, load_profile
from sfg_dist.launch.send import submit
from sfg_dist.launch.submission import Order

__all__ = ["Order", "Profile", "load_profile", "submit"]
