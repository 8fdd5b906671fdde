"""The environment variables by which libraries reach the network.

Proxies, certificates and the hub's own settings are read from the environment
by httpx and huggingface_hub, which say what is wrong but not where it is set.
Values are never shown: the address of a proxy may hold a password.
"""

import os
import urllib.parse

from ovi_jax import untrusted

_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
_SOCKS = ("socks5", "socks5h")
_HUB = "HF_"  # begins the names of huggingface_hub's variables
# Names of errors about an address, which quote parts of it.
_ADDRESS_ERRORS = ("InvalidURL", "InvalidProxyURL", "LocationParseError")


def settings_hint(hub: bool = False) -> str:
  """Name the variables that change how the network is reached.

  Args:
    hub: name those of huggingface_hub too.

  Returns:
    The end of a message: `; check the variables HTTPS_PROXY, …`, or nothing if
    none is set.
  """
  names = [name for name in (*_proxies(), *_CERTIFICATES) if _is_set(name)]
  if hub:
    names += sorted(n for n in os.environ if n.startswith(_HUB) and _is_set(n))
  if not names:
    return ""
  noun = "variable" if len(names) == 1 else "variables"
  return f"; check the {noun} {', '.join(names)}"


def shown(error: Exception, max_chars: int, hub: bool = False) -> str:
  """What an error of the network says, in one line.

  The text of an error about an address or another value is left out: a parser
  takes a part of a password for the port or the host, and quotes it.

  Args:
    error: what httpx, huggingface_hub or a package below them raised.
    max_chars: of the error's text.
    hub: the address of the hub was used too.
  """
  names = {kind.__name__ for kind in type(error).__mro__}
  is_value = isinstance(error, ValueError) and not isinstance(error, OSError)
  if is_value or not names.isdisjoint(_ADDRESS_ERRORS):
    endpoint = ", HF_ENDPOINT" if hub else ""
    return (
      f"the address of a proxy{endpoint} or another setting of the network is"
      " not valid (in a password, #, /, ? and @ are %23, %2F, %3F and %40)"
    )
  return untrusted.printable(" ".join(str(error).split()), max_chars)


def missing_package(error: ImportError) -> str:
  """What to do about a package that is missing for a proxy.

  Args:
    error: what httpx raised.

  Returns:
    One line for the user.
  """
  socks = [n for n in _proxies() if _scheme(os.environ.get(n, "")) in _SOCKS]
  if not socks:
    return f"{' '.join(str(error).split())}{settings_hint()}"
  return (
    f"{socks[0]} names a SOCKS proxy, which needs the package socksio;"
    f" pip install socksio, or unset {socks[0]}"
  )


def _proxies() -> list[str]:
  """The variables of proxies as they are spelled, in either case."""
  return [
    spelled
    for name in _PROXIES
    for spelled in (name, name.lower())
    if _is_set(spelled)
  ]


def _is_set(name: str) -> bool:
  return bool(os.environ.get(name))


def _scheme(address: str) -> str:
  """The scheme of a proxy; some give none."""
  try:
    return urllib.parse.urlsplit(address).scheme.lower()
  except ValueError:
    return ""
