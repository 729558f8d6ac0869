"""On the PYTHONPATH of a job that must not be over before a test is done with it: its shards take a while longer.

Before each shard a labeler sleeps for the seconds that stand in the file SFG_TEST_UNHURRIED, as long as that is there.
Python imports this module at the start of every process, Ray's workers too; it must import nothing that takes time.
"""

import contextlib
import os
import sys
import time

LABELER = "sfg_dist.distributed.labels.labeler"


class Unhurried:
    """Finds the labeler's module as Python does, and changes its class once it is loaded."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != LABELER:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def load_and_slow_down(module):
            load(module)
            slow_down(module.ShardLabeler)

        spec.loader.exec_module = load_and_slow_down
        return spec


def slow_down(labeler):
    label = labeler.label

    def unhurried(self, *arguments):
        with contextlib.suppress(OSError), open(os.environ["SFG_TEST_UNHURRIED"], encoding="utf-8") as file:
            time.sleep(float(file.read()))
        return label(self, *arguments)

    labeler.label = unhurried


sys.meta_path.insert(0, Unhurried)
