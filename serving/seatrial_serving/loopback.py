"""Keep a replica's inner port off the network while its node is on loopback.

Ray Serve 2.60 opens a gRPC port for calls between deployments on all addresses (`_private/replica.py`,
"[::]:0"); it takes pickled arguments and asks for no token. On a cluster other nodes need that port, and
the cluster's network has to keep strangers out; on a node that is on loopback nobody does.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.serve._private import replica

LOOPBACK = "127.0.0.1"
EVERYWHERE = "[::]:"


def bind_inner_port() -> None:
    """Bind this process's inner port on loopback if its node's address is loopback."""
    if not ray.is_initialized() or ray.util.get_node_ip_address() != LOOPBACK:
        return
    add_port = replica.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> Any:
        return add_port(server, address.replace(EVERYWHERE, f"{LOOPBACK}:"))

    replica.add_port_to_grpc_server = add_loopback_port
