"""A real Ray cluster of three nodes on this machine: a head without CPUs, and two of one CPU."""

import os

import pytest

from tests.baselines.endpoints import KEY, KEY_VARIABLE

MEMORY = 80 * 2**20  # of each node's object store: results are small, and /dev/shm may be


@pytest.fixture(scope="session")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray's own is 15, which starves workers beside other tests; the name is as Ray spells it
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    os.environ[KEY_VARIABLE] = KEY  # workers have the environment of their node
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        started.add_node(num_cpus=1, object_store_memory=MEMORY)
    yield started
    started.shutdown()
