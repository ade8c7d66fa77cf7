"""The network interface of a job, and the settings that keep its libraries on it.

By default gloo listens on the address of the host's name, and torch's store on every interface. One
node needs only the loopback interface; several need one interface each, which reaches the others.
"""

import ipaddress
import socket
from dataclasses import dataclass

import psutil

from megatron_chimed.errors import ConfigError

BACKEND = "chimed"  # torchrun's name for `rendezvous`, which imports torch
LOOPBACK_ADDRESS = "127.0.0.1"
_MAX_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where node 0 listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Network:
    """The one interface that this node's processes listen on."""

    interface: str
    address: str
    """This node's address on that interface."""

    def environment(self) -> dict[str, str]:
        """Variables that restrict gloo and NCCL to the interface, for all child processes."""
        # NCCL matches names by prefix; `=` asks for the exact name.
        return {"GLOO_SOCKET_IFNAME": self.interface, "NCCL_SOCKET_IFNAME": f"={self.interface}"}


def parse_endpoint(text: str) -> Endpoint:
    """Parses HOST:PORT; the host is a name or an address, IPv6 in brackets.

    Raises:
        ConfigError: The text has another form.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and colon and port.isdecimal() and 0 < int(port) <= _MAX_PORT):
        raise ConfigError(
            f"--endpoint is {text!r}: give node 0's address and a free port there from 1 to "
            f"{_MAX_PORT}, such as --endpoint node0:29500."
        )
    return Endpoint(host=host, port=int(port))


def loopback() -> Network:
    """The loopback interface."""
    return network_with(LOOPBACK_ADDRESS, "the loopback address")


def choose_network(
    endpoint: Endpoint, *, is_first: bool, interface: str | None, local_addr: str | None
) -> Network:
    """The interface through which this node reaches the others.

    Args:
        endpoint: Where node 0 listens.
        is_first: Whether this is node 0.
        interface: The interface's name, if the user gave it.
        local_addr: This node's address or name, if the user gave it.

    Raises:
        ConfigError: No interface of this node fits.
    """
    if interface is not None:
        return _network_named(interface)
    if local_addr is not None:
        return network_with(_resolve(local_addr, "--local-addr"), f"--local-addr {local_addr}")
    address = _resolve(endpoint.host, "--endpoint")
    if not is_first:
        address = _address_towards(address, endpoint.port)
    elif _is_loopback(address) and endpoint.host not in (address, "localhost"):
        raise ConfigError(
            f"--endpoint names {endpoint.host}, which is {address} on this node, where no other "
            "node can reach it. Give node 0's address in the cluster's network as the endpoint, "
            "or --interface on node 0."
        )
    return network_with(address, f"--endpoint {endpoint}")


def network_with(address: str, source: str) -> Network:
    """The interface of this node that has an address.

    Raises:
        ConfigError: No interface has it.
    """
    wanted = ipaddress.ip_address(address)
    for name, addresses in _interfaces().items():
        if any(ipaddress.ip_address(own) == wanted for own in addresses):
            return Network(interface=name, address=address)
    raise ConfigError(
        f"{source} means {address}, which is not an address of this node. This node has "
        f"{_describe_interfaces()}. Give --interface NAME or --local-addr."
    )


def _network_named(name: str) -> Network:
    addresses = _interfaces().get(name)
    if not addresses:
        raise ConfigError(
            f"--interface is {name!r}, but this node has no such interface with an address. It has "
            f"{_describe_interfaces()}."
        )
    return Network(interface=name, address=addresses[0])


def _interfaces() -> dict[str, list[str]]:
    """Addresses by interface, IPv4 first, without link-local ones."""
    found: dict[str, list[str]] = {}
    for name, entries in psutil.net_if_addrs().items():
        for family in (socket.AF_INET, socket.AF_INET6):
            own = [entry.address for entry in entries if entry.family == family]
            found.setdefault(name, []).extend(text for text in own if not text.startswith("fe80:"))
    return {name: addresses for name, addresses in found.items() if addresses}


def _describe_interfaces() -> str:
    return ", ".join(f"{name} ({', '.join(own)})" for name, own in _interfaces().items())


def _resolve(host: str, flag: str) -> str:
    """The first address of a host, IPv4 before IPv6.

    Raises:
        ConfigError: The host cannot be resolved.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(
            f"{flag}: the host {host!r} cannot be resolved: {error.strerror}. Check the name."
        ) from None
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _address_towards(address: str, port: int) -> str:
    """This node's address on the route to another address; sends nothing.

    Raises:
        ConfigError: There is no route.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))
        except OSError as error:
            raise ConfigError(
                f"this node has no route to the endpoint {address}: {error.strerror}. Check the "
                "network, or give --interface."
            ) from None
        return str(probe.getsockname()[0])
