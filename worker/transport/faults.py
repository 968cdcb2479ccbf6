"""What went wrong on the network, in words for people: an exception of the system comes in, a `Failure` goes out.

A sentence names the host and what to look at. It never has the key, a body or a URL's path or query.
"""

import errno
import os
import socket
import ssl

from promptmill.outcome import Failure, Reason

_PHASES = {
    Reason.CONNECT_TIMEOUT: "could not connect to {peer} within {seconds:g} s",
    Reason.WRITE_TIMEOUT: "{peer} took no byte of the request for {seconds:g} s",
    Reason.BETWEEN_BYTES_TIMEOUT: "{peer} began to answer, then sent nothing for {seconds:g} s",
    Reason.TOTAL_TIMEOUT: "{peer} had not answered in full after {seconds:g} s",
}
#: What OpenSSL says when the other side talks, but not TLS.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "PACKET_LENGTH_TOO_LONG"})
#: The handshake was cut short. Certificates do not mend; a server that is being replaced does.
_CUT_SHORT = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


def timed_out(reason: Reason, peer: str, seconds: float) -> Failure:
    """A time-out of ours; the sentence says which."""
    return Failure(reason, _PHASES[reason].format(peer=peer, seconds=seconds))


def connect_failed(error: OSError, peer: str, *, tls: bool) -> Failure:
    """No connection came about: resolving the name, reaching the address, or the handshake failed."""
    could_not = f"could not connect to {peer}"
    match error:
        case socket.gaierror():
            reason, message = Reason.DNS_FAILED, f"could not find {peer}: {_words(error)}; check the base URL"
        case ssl.SSLCertVerificationError():
            verdict = error.verify_message.rstrip(".")
            message = f"the certificate of {peer} is not trusted: {verdict}; check the base URL and the CA file"
            reason = Reason.TLS_FAILED
        case _ if isinstance(error, _CUT_SHORT) and (tls or isinstance(error, ssl.SSLError)):
            reason, message = Reason.CONNECTION_RESET, f"{peer} closed the connection during the TLS handshake"
        case ssl.SSLError(reason=said) if said in _NOT_TLS:
            reason, message = Reason.TLS_FAILED, f"{peer} does not speak TLS there; should the base URL be http://?"
        case ssl.SSLError():
            reason, message = Reason.TLS_FAILED, f"no TLS connection to {peer}: {_words(error)}"
        case TimeoutError():
            reason, message = Reason.CONNECT_TIMEOUT, f"{could_not}: {_words(error)}"
        case ConnectionRefusedError():
            reason, message = Reason.CONNECTION_REFUSED, f"{could_not}: connection refused; is it running?"
        case ConnectionResetError() | ConnectionAbortedError() | BrokenPipeError():
            reason, message = Reason.CONNECTION_RESET, f"{could_not}: {_words(error)}"
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            advice = "raise `ulimit -n` or lower max_in_flight"
            reason, message = Reason.CONNECTION_FAILED, f"{could_not}: too many open files; {advice}"
        case _:
            reason, message = Reason.CONNECTION_FAILED, f"{could_not}: {_words(error)}"
    return Failure(reason, message)


def proxy_refused(proxy: str, peer: str, said: str) -> Failure:
    """The proxy is there, and does not let us through."""
    return Failure(Reason.CONNECTION_FAILED, f"the proxy {proxy} opens no tunnel to {peer}: {said}")


def connection_lost(error: Exception | None, peer: str, *, sending: bool, answering: bool) -> Failure:
    """The connection ended before the answer did."""
    when = (
        "in the middle of its answer"
        if answering
        else "while the request was sent"
        if sending
        else "before it answered"
    )
    if isinstance(error, TimeoutError):
        # The system's own: keep-alive probes or sent bytes were not acknowledged.
        if sending:
            return Failure(Reason.WRITE_TIMEOUT, f"{peer} stopped acknowledging the request")
        return Failure(Reason.CONNECTION_RESET, f"{peer} is gone: it no longer acknowledges keep-alive probes")
    if isinstance(error, ssl.SSLError):
        return Failure(Reason.CONNECTION_RESET, f"the TLS connection to {peer} broke {when}: {_words(error)}")
    if answering:
        ended = "reset" if error is not None else "closed"
        return Failure(Reason.BODY_TRUNCATED, f"{peer} {ended} the connection {when}")
    if error is None:
        return Failure(Reason.CONNECTION_RESET, f"{peer} closed the connection {when}")
    if isinstance(error, ConnectionError):
        return Failure(Reason.CONNECTION_RESET, f"{peer} reset the connection {when}")
    return Failure(Reason.CONNECTION_FAILED, f"the connection to {peer} failed {when}: {_words(error)}")


def _words(error: Exception) -> str:
    """The system's words, without asyncio's (which name addresses and ports a second time)."""
    if isinstance(error, socket.gaierror):
        return (error.strerror or "no such host").lower()
    if isinstance(error, ssl.SSLError):
        return (getattr(error, "reason", None) or "unknown error").replace("_", " ").lower()
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number).lower() if number else str(error) or type(error).__name__
