"""A job of seconds, for what sends jobs elsewhere."""

JOB = """
[data]
source = "moons"
max_rows = 2000
[labels]
num_pairs = {num_pairs}
shard_rows = {shard_rows}
num_evaluations = {num_evaluations}
batch_size = {shard_rows}
tolerance = 0
[train]
width = 16
depth = 1
num_epochs = 2
batch_size = 256
[evaluate]
num_samples = 200
judge = false
metrics = ["ks_mean"]
[executor]
num_actors = 2
[output]
dir = "{directory}"
"""
SIZES = {"num_pairs": 2048, "shard_rows": 128, "num_evaluations": 20}
