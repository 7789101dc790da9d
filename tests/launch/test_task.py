"""What a job's tasks become."""

from pathlib import Path

import pytest

from launch.task import port_of


@pytest.mark.parametrize("drawn", [20_000, 31_999, 32_768, 43_376, 60_000])
def test_ranks_meet_at_a_port_that_no_connection_has_taken(drawn):
    """Linux takes the ports of outgoing connections from a range of its own."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert 1024 < port_of(drawn) < first
