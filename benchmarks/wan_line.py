"""Slow lines on one machine: a network namespace a host, a TUN device in each, and a process that carries packets between them.

A host hangs on a line of its own: so many Mbit/s each way, a delay, a share of packets lost, a queue that drops what does
not fit; all lines meet without limits. A line can be cut. Counted are packets' bytes, and the bytes of TCP streams that arrived
without a gap before them, for the program at the end to have: what a stream is sent again is not in them, what a second
connection repeats is. Linux, as root, with `ip` of iproute2.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

MTU_BYTES = 1500
QUEUE_BYTES = 256 << 10  # of a home router; 0.1 s at 20 Mbit/s
_TUNSETIFF, _TUN, _NO_INFORMATION = 0x400454CA, 0x0001, 0x1000
_TCP, _IPV4, _SYN = 6, 4, 2
_AT_ONCE = 64  # packets taken from one host before the others are looked at
_HALF = 1 << 31  # of the sequence numbers: what is further ahead is behind


class Host(NamedTuple):
    """A host and its line."""

    name: str
    address: str
    mbit: float = 0.0  # a second, each way; 0: without limit
    delay_ms: float = 0.0  # each way: half of a round trip
    loss: float = 0.0  # share of packets, each way


class Carried(NamedTuple):
    """What has arrived over a host's line, from it or at it."""

    packet_bytes: int
    dropped: int  # packets
    stream_bytes: int  # of TCP, of each connection up to the first byte that is missing
    connections: int


def missing() -> str:
    """Why there can be no lines here; "" where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if shutil.which("ip") is None:
        return "`ip` of iproute2 is not installed"
    return "" if Path("/dev/net/tun").exists() else "/dev/net/tun is not there"


def congestion_controls() -> list[str]:
    """Those that this kernel lets a namespace use: to add one, write it into this file, as root."""
    return Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()


class Lines:
    """Owns the namespaces and the process that carries packets; use it in a `with`, after which nothing of it is left."""

    def __init__(self, hosts: Sequence[Host], congestion: str) -> None:
        self._spaces = {host.name: f"atoll-{os.getpid()}-{host.name}" for host in hosts}
        self._hosts, self._congestion = list(hosts), congestion
        self._carrier: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        told = json.dumps({"hosts": self._hosts, "spaces": self._spaces})
        try:
            for space in self._spaces.values():
                _ip("netns", "add", space)
            self._carrier = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._ask(told)
            for host in self._hosts:
                write = f"echo {self._congestion} > /proc/sys/net/ipv4/tcp_congestion_control"
                subprocess.run([*self.inside(host.name), "sh", "-c", write], check=True)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._carrier is not None:
            self._carrier.kill()
            self._carrier.wait()
        for space in self._spaces.values():
            subprocess.run(["ip", "netns", "delete", space])

    def inside(self, host: str) -> list[str]:
        """What goes before a command that is to run on this host."""
        return ["ip", "netns", "exec", self._spaces[host]]

    def congestion(self, host: str) -> str:
        """What its kernel says that it uses."""
        command = [*self.inside(host), "cat", "/proc/sys/net/ipv4/tcp_congestion_control"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def cut(self, host: str) -> None:
        """Nothing passes its line, either way, until it is mended; what is on its way is lost."""
        self._ask(json.dumps({"cut": host}))

    def mend(self, host: str) -> None:
        """It passes again."""
        self._ask(json.dumps({"mend": host}))

    def carried(self, host: str) -> tuple[Carried, Carried]:
        """From it, and to it."""
        up, down = self._ask(json.dumps({"count": host}))
        return Carried(*up), Carried(*down)

    def _ask(self, line: str) -> Any:
        assert self._carrier is not None
        assert self._carrier.stdin is not None
        assert self._carrier.stdout is not None
        self._carrier.stdin.write(line + "\n")
        self._carrier.stdin.flush()
        answer = self._carrier.stdout.readline()
        if not answer:
            raise RuntimeError("the process that carries packets has ended; what it said is above")
        return json.loads(answer)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Stream:
    """How much of a connection's one direction has arrived without a gap."""

    def __init__(self, begins: int) -> None:
        self.whole_bytes = 0
        self._begins, self._pieces = begins, list[tuple[int, int]]()  # first sequence number; (from, to) beyond a gap

    def add(self, sequence: int, length: int) -> None:
        """A segment that has arrived."""
        ahead = (sequence - self._begins - self.whole_bytes + _HALF) % (2 * _HALF) - _HALF
        at = self.whole_bytes + ahead
        heapq.heappush(self._pieces, (at, at + length))
        while self._pieces and self._pieces[0][0] <= self.whole_bytes:
            self.whole_bytes = max(self.whole_bytes, heapq.heappop(self._pieces)[1])


class Way:
    """One direction of a line: when a packet that is offered now comes out of it, and what has come out."""

    def __init__(self, host: Host) -> None:
        self._bytes_s, self._delay_s, self._loss = host.mbit * 1e6 / 8, host.delay_ms / 1e3, host.loss
        self._free_s = 0.0  # when all that was offered before has been sent
        self._streams: dict[bytes, Stream] = {}  # by addresses and ports
        self._packet_bytes = self._dropped = 0
        self.whole = True

    def offered(self, now_s: float, size_bytes: int) -> float | None:
        """When it arrives; None: it is lost."""
        queued = max(self._free_s - now_s, 0.0) * self._bytes_s
        if not self.whole or queued > QUEUE_BYTES or random.random() < self._loss:
            self._dropped += 1
            return None
        if self._bytes_s:
            self._free_s = max(self._free_s, now_s) + size_bytes / self._bytes_s
        return max(self._free_s, now_s) + self._delay_s

    def arrived(self, packet: bytes) -> bool:
        """Count it; False: the line was cut meanwhile."""
        if not self.whole:
            self._dropped += 1
            return False
        self._packet_bytes += len(packet)
        if packet[9] == _TCP:
            self._streamed(packet)
        return True

    def told(self) -> Carried:
        """Up to now."""
        whole = sum(stream.whole_bytes for stream in self._streams.values())
        return Carried(self._packet_bytes, self._dropped, whole, len(self._streams))

    def _streamed(self, packet: bytes) -> None:
        tcp = (packet[0] & 15) * 4
        who = packet[12:20] + packet[tcp : tcp + 4]
        sequence, length = int.from_bytes(packet[tcp + 4 : tcp + 8], "big"), len(packet) - tcp - (packet[tcp + 12] >> 4) * 4
        if packet[tcp + 13] & _SYN:
            self._streams[who] = Stream(sequence + 1)
        elif length and who in self._streams:
            self._streams[who].add(sequence, length)


class Line(NamedTuple):
    """A host's device and the two ways of its line."""

    device: int
    up: Way
    down: Way


class Carrier:
    """Takes packets from each host's device and gives them to the one that they are for, in their time."""

    def __init__(self, hosts: Sequence[Host], spaces: Mapping[str, str]) -> None:
        self._lines = {host.name: Line(_device(host, spaces[host.name]), Way(host), Way(host)) for host in hosts}
        self._by_device = {line.device: line for line in self._lines.values()}
        self._by_address = {bytes(map(int, host.address.split("."))): self._lines[host.name] for host in hosts}
        self._due: list[
            tuple[float, int, bool, Line, Line, bytes]
        ] = []  # (when, order, at its last line's end, from, to, packet)
        self._order = 0

    def run(self) -> None:
        """Until standard input ends."""
        poll = select.epoll()
        for device in (sys.stdin.fileno(), *self._by_device):
            poll.register(device, select.EPOLLIN)
        while True:
            self._deliver()
            wait_s = max(self._due[0][0] - time.monotonic(), 0.0) if self._due else 1.0
            for device, _ in poll.poll(wait_s):
                if device != sys.stdin.fileno():
                    self._take(self._by_device[device])
                elif not self._answer(sys.stdin.readline()):
                    return

    def _answer(self, line: str) -> bool:
        for what, host in (json.loads(line) if line else {}).items():
            asked = self._lines[host]
            if what != "count":
                asked.up.whole = asked.down.whole = what == "mend"
            print(json.dumps([asked.up.told(), asked.down.told()]), flush=True)
        return bool(line)

    def _take(self, line: Line) -> None:
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(line.device, 1 << 16)
            except BlockingIOError:
                return
            target = self._by_address.get(packet[16:20]) if packet[0] >> 4 == _IPV4 else None
            if target is not None:
                self._push(line.up.offered(time.monotonic(), len(packet)), False, line, target, packet)

    def _push(self, due_s: float | None, last: bool, source: Line, target: Line, packet: bytes) -> None:
        if due_s is not None:
            self._order += 1
            heapq.heappush(self._due, (due_s, self._order, last, source, target, packet))

    def _deliver(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            due_s, _, last, source, target, packet = heapq.heappop(self._due)
            if not last:
                if source.up.arrived(packet):
                    self._push(target.down.offered(due_s, len(packet)), True, source, target, packet)
            elif target.down.arrived(packet):
                with contextlib.suppress(BlockingIOError):  # a kernel that is full loses packets, as any router does
                    os.write(target.device, packet)


def _device(host: Host, space: str) -> int:
    """A TUN device in the host's namespace, with its address: opened here, then moved there."""
    device, name = (
        os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK),
        f"atl{host.address.rpartition('.')[2]}x{os.getpid() % 10000}",
    )
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN | _NO_INFORMATION))
    _ip("link", "set", name, "netns", space)
    for words in (
        ("link", "set", "lo", "up"),
        ("address", "add", f"{host.address}/24", "dev", name),
        ("link", "set", name, "mtu", str(MTU_BYTES), "txqueuelen", "1000", "up"),
    ):
        _ip("-n", space, *words)
    return device


def main() -> None:
    told = json.loads(sys.stdin.readline())
    hosts = [Host(*host) for host in told["hosts"]]
    carrier = Carrier(hosts, told["spaces"])
    print(json.dumps("ready"), flush=True)
    carrier.run()


if __name__ == "__main__":
    main()
