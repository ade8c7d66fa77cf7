"""How the nodes of one attempt meet: node 0 listens on one address, the others connect to it.

torch's own ways do not fit. `c10d` un-pickles state that whoever reaches the port may have written,
and its store, like that of `static`, listens on every interface. Here the store is handed a socket
that is bound already, values are numbers and JSON, and ranks follow node ranks.

Each attempt has a store of its own, which ends with node 0's agent. A node may come back while the
others are still in the attempt that it has left: it knows that store by its own earlier visit, and
waits for the next.
"""

import datetime
import socket
import time

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from megatron_chimed.errors import ConfigError
from megatron_chimed.launch.network import BACKEND, Endpoint

_RETRY_SECONDS = 1.0
_MET = "met"


class Rendezvous(RendezvousHandler):
    """One meeting of a fixed number of nodes.

    Args:
        endpoint: Where node 0 listens; its host is an address on node 0. Port 0 lets the system
            choose, for one node.
        node_rank: This node's number.
        num_nodes: Nodes of the job.
        job_id: Keeps apart jobs that are given the same endpoint; no secret.
        timeout: Seconds to wait for the other nodes.
    """

    def __init__(
        self, endpoint: Endpoint, *, node_rank: int, num_nodes: int, job_id: str, timeout: float
    ) -> None:
        self._endpoint = endpoint
        self._node_rank = node_rank
        self._num_nodes = num_nodes
        self._job_id = job_id
        self._timeout = timeout
        self._store: dist.TCPStore | None = None  # serves as long as it is held

    def next_rendezvous(self) -> RendezvousInfo:
        """Waits for all nodes.

        Raises:
            ConfigError: The endpoint cannot be listened on.
            RendezvousConnectionError: The others did not come in time.
            DistError: The store was lost.
        """
        self._store = self._listen() if self._node_rank == 0 else self._connect()
        return RendezvousInfo(
            dist.PrefixStore(self._job_id, self._store),
            self._node_rank,
            self._num_nodes,
            RendezvousStoreInfo(self._endpoint.host, self._store.port),
        )

    def _listen(self) -> dist.TCPStore:
        host = self._endpoint.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, self._endpoint.port), family=family)
        except OSError as error:
            raise ConfigError(
                f"node 0 cannot listen on {self._endpoint}: {error.strerror}. Give --endpoint a "
                "port that is free on node 0."
            ) from None
        store = dist.TCPStore(
            host,
            listener.getsockname()[1],
            is_master=True,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=self._timeout),
            master_listen_fd=listener.detach(),
        )
        keys = dist.PrefixStore(self._job_id, store)
        keys.wait([_visits_of(node) for node in range(1, self._num_nodes)])
        keys.set(_MET, "")
        return store

    def _connect(self) -> dist.TCPStore:
        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0:
            store = dist.TCPStore(
                self._endpoint.host,
                self._endpoint.port,
                is_master=False,
                wait_for_workers=False,
                timeout=datetime.timedelta(seconds=left),
            )
            keys = dist.PrefixStore(self._job_id, store)
            visits = keys.add(_visits_of(self._node_rank), 1)
            if visits == 1 or not keys.check([_MET]):
                keys.wait([_MET])
                return store
            time.sleep(_RETRY_SECONDS)
        raise RendezvousConnectionError(
            f"node 0 has been in an attempt that this node has left for {self._timeout:g} s"
        )

    def get_backend(self) -> str:
        """The name of this way to meet."""
        return BACKEND

    def get_run_id(self) -> str:
        """The job's id."""
        return self._job_id

    @property
    def use_agent_store(self) -> bool:
        """Workers connect to the agents' store, the one port that is known to be open."""
        return True

    def is_closed(self) -> bool:
        """Never: an attempt ends with its agents."""
        return False

    def set_closed(self) -> None:
        """Nothing to close."""

    def num_nodes_waiting(self) -> int:
        """None: the number of nodes is fixed."""
        return 0

    def shutdown(self) -> bool:
        """Nothing to end but the store, which ends with the process."""
        return True


def _visits_of(node_rank: int) -> str:
    return f"visits/{node_rank}"


def register() -> None:
    """Makes torchrun know `--rdzv-backend chimed`."""
    rendezvous_handler_registry.register(BACKEND, _from_parameters)


def _from_parameters(parameters: RendezvousParameters) -> Rendezvous:
    host, _, port = parameters.endpoint.rpartition(":")
    return Rendezvous(
        Endpoint(host=host.strip("[]"), port=int(port)),
        node_rank=int(parameters.config["node_rank"]),
        num_nodes=parameters.max_nodes,
        job_id=parameters.run_id,
        timeout=float(parameters.config["timeout"]),
    )
