"""Where the Ollama server is: OLLAMA_HOST in Ollama's own grammar (envconfig/config.go in ollama/ollama)."""

import ipaddress
import os
import re
import socket
import urllib.parse
import urllib.request

from toolkit.core import console
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.output_settings import OllamaSettings


def server_address(settings: OllamaSettings) -> str:
    """Return the server's address as `scheme://host:port[/path]`.

    `ollama.host`, else OLLAMA_HOST, else 127.0.0.1:11434. Spaces and quotes around it are removed. Without a scheme, or
    with one in capitals, the port is 11434, else it is the scheme's own; an invalid port becomes that port too, with a
    warning. The unspecified addresses that a server binds to mean loopback here.
    Raises ToolkitError (exit 2) for an invalid address.
    """
    source = "`ollama.host`" if settings.host.strip() else "OLLAMA_HOST"
    text = (settings.host.strip() or os.environ.get("OLLAMA_HOST", "").strip()).strip("\"'").strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = ("https", "ollama.com:443") if text == "ollama.com" else ("http", text)
    # Ollama compares the scheme as it is written, and only then does its address make it small letters.
    default = {"http": "80" if separator else "11434", "https": "443"}.get(scheme, "11434")
    scheme = scheme.lower()
    hostport, _, path = rest.partition("/")
    host, port = _split(hostport)
    if (
        scheme not in ("http", "https")
        or not re.fullmatch(r"[0-9A-Za-z._:%-]+", host)
        or (":" in host and _number(host) is None)
    ):
        raise ToolkitError(
            f"{source} is not an address of an Ollama server: `{text}`",
            hint="write it as host, host:port, http://host:port or https://host",
            exit_code=USAGE,
        )
    if port is None:
        port = default
    elif not re.fullmatch(r"[0-9]{1,9}", port) or int(port) > 65535:
        console.warn_once(f"{source} names port `{port}`, which is invalid: {default} is used, as Ollama does")
        port = default
    return f"{scheme}://{_plain(host)}:{int(port)}" + (f"/{path.strip('/')}" if path.strip("/") else "")


def _split(hostport: str) -> tuple[str, str | None]:
    """Split host and port as Go's net.SplitHostPort does; the port is None if there is none."""
    bracketed = re.fullmatch(r"\[([^\[\]]*)\]:([^:]*)", hostport)
    plain = re.fullmatch(r"([^\[\]:]*):([^:\[\]]*)", hostport)
    found = bracketed or plain
    if found:
        return found[1] or "127.0.0.1", found[2]
    return hostport.strip("[]") or "127.0.0.1", None


def _number(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return a host that is written as a number, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _plain(host: str) -> str:
    """Write a host as part of an address: an unspecified address becomes loopback, IPv6 gets brackets."""
    number = _number(host)
    if number is None:
        return host
    if number.version == 4:
        return "127.0.0.1" if number.is_unspecified else host
    return "[::1]" if number.is_unspecified else f"[{host}]"


def is_loopback(url: str) -> bool:
    """Say whether an address is this machine's own; if a proxy is set, a name is looked up."""
    host = (urllib.parse.urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761
        return True
    try:
        return _loops(host)
    except ValueError:
        pass
    try:
        return _loops(socket.inet_ntoa(socket.inet_aton(host)))  # 127.1 and 0x7f000001, which the system takes too
    except OSError:
        pass
    if not urllib.request.getproxies():
        return False
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(_loops(address.partition("%")[0]) for address in found)


def _loops(address: str) -> bool:
    number = ipaddress.ip_address(address)
    inner = getattr(number, "ipv4_mapped", None)
    return bool((inner or number).is_loopback)


def warn_if_open(url: str) -> None:
    """Warn once that data sent to another machine over plain HTTP can be read on the way."""
    if url.startswith("http://") and not is_loopback(url):
        what = "model, prompts and OLLAMA_API_KEY" if os.environ.get("OLLAMA_API_KEY") else "model and prompts"
        console.warn_once(
            f"{url} is another machine and the connection is not encrypted: {what} can be read on the way"
        )
