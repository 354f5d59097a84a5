"""One question to a coordinator, from somebody who has no session there: one call over mutual TLS, and an answer or a refusal."""

from __future__ import annotations

import grpc

from atoll.errors import IdentityError, RemoteError, UnknownName
from atoll.remote import protocol_pb2 as pb
from atoll.remote.channel import MOST_MESSAGE_BYTES, SERVICE, SITE_KEY, check_address
from atoll.remote.values import Credentials

_OPTIONS = [("grpc.max_receive_message_length", MOST_MESSAGE_BYTES), ("grpc.enable_retries", 0)]


def ask(
    address: str,
    credentials: Credentials | None,
    question: str,
    body: bytes = b"",
    *,
    insecure: bool = False,
    name: str = "",
    timeout_s: float = 30.0,
) -> bytes:
    """What the coordinator at "host:port" answers. `name`: of a site, where there is no certificate to say it.

    Raises:
        IdentityError: it is not for who asks. UnknownName: there is no such thing, for who asks.
        RemoteError: it is not reached, or can't answer. ConfigError: no TLS, and that not waived.
    """
    check_address(address, credentials, insecure)
    if credentials is None:
        channel = grpc.insecure_channel(address, _OPTIONS)
    else:
        tls = grpc.ssl_channel_credentials(credentials.authority, credentials.key, credentials.certificate)
        channel = grpc.secure_channel(address, tls, _OPTIONS)
    with channel:
        call = channel.unary_unary(
            f"/{SERVICE}/Ask", request_serializer=pb.Question.SerializeToString, response_deserializer=pb.Reply.FromString
        )
        try:
            reply = call(pb.Question(name=question, body=body), timeout=timeout_s, metadata=((SITE_KEY, name),))
        except grpc.RpcError as error:
            raise _refusal(address, error) from None
    return bytes(reply.body)


def _refusal(address: str, error: grpc.RpcError) -> Exception:
    told = str(error.details())
    if error.code() == grpc.StatusCode.PERMISSION_DENIED:
        return IdentityError(told)
    if error.code() == grpc.StatusCode.NOT_FOUND:
        return UnknownName(told)
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        why = "it is not running, the address is another's, or the two do not trust each other's certificates"
        return RemoteError(f"the coordinator at {address} does not answer: {why} ({told.partition(chr(10))[0][:200]})")
    return RemoteError(f"the coordinator at {address} can't answer: {told}")
