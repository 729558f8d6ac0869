"""Imported before torch and scikit-learn: their threads sleep while they wait, as in every process of the package."""

from sfg_dist.job.threads import wait_passively

wait_passively()
