"""The rendezvous of one attempt: node 0 listens on one address, the others connect to it.

torch's own backends do not fit. `c10d` unpickles state that anyone who reaches the port may have
written, and its store, like that of `static`, listens on every interface. Here the store gets a
socket that is already bound, values are numbers and JSON, and ranks follow node ranks.

Each attempt has its own store, which ends with node 0's agent. A node may return while the others
are still in the attempt that it has left: it recognizes that store by its own earlier visit, and
waits for the next one.
"""

import datetime
import socket
import time

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from megatron_chimed.errors import ConfigError
from megatron_chimed.launch.ports import BACKEND, Endpoint

_RETRY_SECONDS = 1.0
_MET = "met"


class Rendezvous(RendezvousHandler):
    """A rendezvous of a fixed number of nodes.

    Args:
        endpoint: Where node 0 listens; its host is an address on node 0. With one node, port 0 lets
            the system choose.
        node_rank: This node's rank.
        num_nodes: Number of nodes in the job.
        job_id: Separates jobs that are given the same endpoint; not a secret.
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
        self._store: TCPStore | None = None  # it serves as long as it is referenced

    def next_rendezvous(self) -> RendezvousInfo:
        """Waits for all nodes.

        Raises:
            ConfigError: Node 0 cannot listen on the endpoint.
            RendezvousConnectionError: The other nodes did not join in time.
            DistError: The connection to the store was lost.
        """
        store = self._listen() if self._node_rank == 0 else self._connect()
        self._store = store
        return RendezvousInfo(
            PrefixStore(self._job_id, store),
            self._node_rank,
            self._num_nodes,
            RendezvousStoreInfo(self._endpoint.host, store.port),
        )

    def _listen(self) -> TCPStore:
        host = self._endpoint.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, self._endpoint.port), family=family)
        except OSError as error:
            raise ConfigError(
                f"node 0 cannot listen on {self._endpoint}: {error.strerror}. Give --endpoint a "
                "port that is free on node 0."
            ) from None
        store = TCPStore(
            host,
            listener.getsockname()[1],
            is_master=True,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=self._timeout),
            master_listen_fd=listener.detach(),
        )
        keys = PrefixStore(self._job_id, store)
        keys.wait([_visits_of(node) for node in range(1, self._num_nodes)])
        keys.set(_MET, "")
        return store

    def _connect(self) -> TCPStore:
        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0:
            store = TCPStore(
                self._endpoint.host,
                self._endpoint.port,
                is_master=False,
                wait_for_workers=False,
                timeout=datetime.timedelta(seconds=left),
            )
            keys = PrefixStore(self._job_id, store)
            visits = keys.add(_visits_of(self._node_rank), 1)
            if visits == 1 or not keys.check([_MET]):
                keys.wait([_MET])
                return store
            time.sleep(_RETRY_SECONDS)
        raise RendezvousConnectionError(
            f"for {self._timeout:g} s node 0 has not left the attempt that this node has left"
        )

    def get_backend(self) -> str:
        """Name of this backend."""
        return BACKEND

    def get_run_id(self) -> str:
        """Id of the job."""
        return self._job_id

    @property
    def use_agent_store(self) -> bool:
        """True: workers connect to the agents' store, whose port is known to be open."""
        return True

    def is_closed(self) -> bool:
        """False: an attempt ends with its agents."""
        return False

    def set_closed(self) -> None:
        """Does nothing."""

    def num_nodes_waiting(self) -> int:
        """0: the number of nodes is fixed."""
        return 0

    def shutdown(self) -> bool:
        """True: the store, all there is to shut down, ends with the process."""
        return True


def _visits_of(node_rank: int) -> str:
    return f"visits/{node_rank}"


def register() -> None:
    """Registers torchrun's `--rdzv-backend chimed`."""
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
