"""A port for who has no certificate yet: one call, bytes there and bytes back, TLS with the server's certificate alone.

It is another port than the hub's, where nobody is heard without a certificate. A site that knows no more than the authority's
SHA-256 first looks at what the server shows, believes none of it but what has that fingerprint, and calls with that as its root.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from atoll.errors import AtollError, IdentityError, RemoteError
from atoll.remote.values import Credentials

_METHOD = "/atoll.remote.v1.Enrolment/Enrol"
_MOST_BYTES = 32768
_OPTIONS = [("grpc.max_receive_message_length", _MOST_BYTES), ("grpc.max_send_message_length", _MOST_BYTES)]
_CALLS = 64  # at once; more are refused, and try again


class Enrolment(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Owns the port and four threads. Closed by `close`."""

    def __init__(self, address: str, credentials: Callable[[], Credentials], answer: Callable[[bytes], bytes]) -> None:
        """Listen; `credentials` is asked at every handshake, `answer` raises AtollError to refuse.

        Raises RemoteError where the port can't be had.
        """

        def found() -> Any:
            now = credentials()
            return grpc.ssl_server_certificate_configuration([(now.key, now.certificate)])

        self._answer = answer
        tls = grpc.dynamic_ssl_server_credentials(found(), found)
        options = [*_OPTIONS, ("grpc.so_reuseport", 0), ("grpc.max_connection_idle_ms", 30_000)]
        self._server = grpc.server(ThreadPoolExecutor(4), [self], options=options, maximum_concurrent_rpcs=_CALLS)
        try:
            port = self._server.add_secure_port(address, tls)
        except RuntimeError as error:
            raise RemoteError(f"{address} can't be listened on ({error}); name another --listen") from None
        self.address = f"{address.rpartition(':')[0]}:{port}"
        self._server.start()

    def service(self, details: Any) -> Any:
        """The one method; gRPC says of any other that it is not there."""
        return grpc.unary_unary_rpc_method_handler(self._enrol) if details.method == _METHOD else None

    def _enrol(self, question: bytes, context: Any) -> bytes:
        try:
            return self._answer(question)
        except AtollError as error:
            return bytes(context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error)))

    def close(self) -> None:
        """Stop listening; a call that is being answered has two seconds."""
        self._server.stop(2.0).wait(5.0)


def ask(address: str, ca_pem: bytes, question: bytes, timeout_s: float = 30.0) -> bytes:
    """What the server of this authority answers. Raises IdentityError with its refusal, RemoteError where it is not reached."""
    tls = grpc.ssl_channel_credentials(ca_pem)
    with grpc.secure_channel(address, tls, [*_OPTIONS, ("grpc.enable_retries", 0)]) as channel:
        try:
            return bytes(channel.unary_unary(_METHOD)(question, timeout=timeout_s))
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.PERMISSION_DENIED:
                raise IdentityError(str(error.details())) from None
            raise RemoteError(f"{address} gives no certificate: {error.details()}; ask again, the token is still yours") from None


def shown_chain(address: str, timeout_s: float = 30.0) -> list[bytes]:
    """The certificates, as DER, that a server shows, not checked at all. Raises RemoteError where there is none."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])  # gRPC hangs up on who does not offer it
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout_s) as line,
            contextlib.closing(context.wrap_socket(line, server_hostname=host.strip("[]"))) as secured,
        ):
            return _chain(secured)
    except (OSError, ValueError) as error:
        raise RemoteError(f"{address} is not reached, or speaks no TLS: {error}; write HOST:PORT of `atoll pki listen`") from None


def _chain(line: Any) -> list[bytes]:
    if hasattr(line, "get_unverified_chain"):  # Python 3.13
        return list(line.get_unverified_chain())
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in line._sslobj.get_unverified_chain()]  # 3.11 and 3.12
