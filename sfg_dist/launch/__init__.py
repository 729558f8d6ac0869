"""From a job file to a Slurm script, a KubeRay manifest or a running Ray cluster; knows neither torch nor ray."""

from sfg_dist.launch.profile import Profile, load_profile
from sfg_dist.launch.send import submit
from sfg_dist.launch.submission import Order, Submission

__all__ = ["Order", "Profile", "Submission", "load_profile", "submit"]
