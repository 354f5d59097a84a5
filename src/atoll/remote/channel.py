"""What gRPC is told at both ends: its methods, limits, keep-alive and certificates."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from atoll.errors import ConfigError
from atoll.remote import protocol_pb2 as pb
from atoll.remote.chunks import pack, unpack
from atoll.remote.values import Credentials

SERVICE = "atoll.remote.v1.Coordinator"
SITE_KEY = "atoll-site"  # metadata: the site's name, where there is no certificate to say it
MOST_MESSAGE_BYTES = 1 << 22
Codec: TypeAlias = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]
GARBLED = object()  # what a server reads in the place of bytes that are no message
NO_MESSAGE = "these bytes are no message of Atoll; something else calls here, or it is damaged"


def _codec(message: Any) -> Codec:
    return message.SerializeToString, message.FromString


_CHUNK: Codec = (pack, unpack)
METHODS: dict[str, tuple[str, Codec, Codec]] = {
    "Session": ("stream_stream", _codec(pb.SiteMessage), _codec(pb.CoordinatorMessage)),
    "Fetch": ("unary_stream", _codec(pb.Want), _CHUNK),
    "Have": ("unary_unary", _codec(pb.Parcel), _codec(pb.Receipt)),
    "Push": ("stream_unary", _CHUNK, _codec(pb.Receipt)),
    "Ask": ("unary_unary", _codec(pb.Question), _codec(pb.Reply)),
}
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),  # home routers and hospital firewalls forget a silent connection in a minute
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # What gRPC has received and we have not read is lost with the line, and sent again: let it be little. It bounds the
    # memory that a site costs, too, and is enough for 50 Mbit/s at 80 ms.
    ("grpc.http2.lookahead_bytes", 1 << 19),
    ("grpc.http2.bdp_probe", 0),
]
SERVER_OPTIONS = [
    *_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),  # a second coordinator on the port is a mistake, and is told so
]
CHANNEL_OPTIONS = [
    *_OPTIONS,
    ("grpc.enable_retries", 0),  # the link goes on from where it was, which gRPC can't know
    ("grpc.use_local_subchannel_pool", 1),
]


def handlers(service: Any) -> grpc.GenericRpcHandler:
    """The methods of `service`, named in lower case, as a server takes them; bytes that are no message are GARBLED."""
    made = {}
    for name, (shape, asked, answered) in METHODS.items():
        handler = getattr(grpc, f"{shape}_rpc_method_handler")
        method, read = getattr(service, name.lower()), _reading(asked[1])
        made[name] = handler(method, request_deserializer=read, response_serializer=answered[0])
    return grpc.method_handlers_generic_handler(SERVICE, made)


def _reading(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def found(data: bytes) -> Any:
        try:
            return read(data)
        except (DecodeError, ValueError):
            return GARBLED  # gRPC would answer with a traceback in the log

    return found


def stub(channel: grpc.aio.Channel, name: str) -> Any:
    """The call of this name over a channel."""
    shape, asked, answered = METHODS[name]
    call = getattr(channel, shape)
    return call(f"/{SERVICE}/{name}", request_serializer=asked[0], response_deserializer=answered[1])


def server_credentials(credentials: Callable[[], Credentials]) -> grpc.ServerCredentials:
    """Mutual TLS: no call without a certificate of a pinned authority. `credentials` is asked at every handshake."""

    def found() -> Any:
        now = credentials()
        return grpc.ssl_server_certificate_configuration([(now.key, now.certificate)], root_certificates=now.authority)

    return grpc.dynamic_ssl_server_credentials(found(), found, require_client_authentication=True)


def open_channel(address: str, credentials: Credentials | None, server_name: str | None) -> grpc.aio.Channel:
    """A channel that connects when it is first used."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
    named = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    tls = grpc.ssl_channel_credentials(credentials.authority, credentials.key, credentials.certificate)
    return grpc.aio.secure_channel(address, tls, [*CHANNEL_OPTIONS, *named])


def check_address(address: str, credentials: Credentials | None, insecure: bool) -> None:
    """Raise ConfigError unless there is TLS, or the address is loopback and TLS was waived in so many words.

    >>> check_address("127.0.0.1:0", None, insecure=True)
    >>> check_address("0.0.0.0:7443", None, insecure=True)
    Traceback (most recent call last):
    atoll.errors.ConfigError: '0.0.0.0:7443' without TLS: that is for loopback, in tests; give certificates (atoll pki)
    """
    host, sign, port = address.rpartition(":")
    if not sign or not port.isdigit() or not host:
        raise ConfigError(f"{address!r} is not an address: write HOST:PORT, such as coordinator.example:7443")
    if credentials is not None:
        return
    if not _loopback(host.strip("[]")):
        raise ConfigError(f"{address!r} without TLS: that is for loopback, in tests; give certificates (atoll pki)")
    if not insecure:
        raise ConfigError(f"{address!r} without certificates: give them (atoll pki), or say that it is to be insecure")


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
