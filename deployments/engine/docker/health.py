"""Whether this container's process serves: a master that is ready (it knows a leader, and has caught up), or an
executor that listens. Ports are the default ones."""

import socket
import ssl
import sys
import urllib.error
import urllib.request

HTTP, EXECUTOR = 10250, 10241
TIMEOUT_S = 3


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), TIMEOUT_S).close()
    except OSError:
        return False
    return True


def ready() -> bool:
    # who asks is on the same machine; the certificate names the host by which others dial it
    for scheme, context in (("http", None), ("https", ssl._create_unverified_context())):
        try:
            with urllib.request.urlopen(f"{scheme}://127.0.0.1:{HTTP}/readyz", timeout=TIMEOUT_S, context=context):
                return True
        except urllib.error.HTTPError:
            return False  # it answers that it is not
        except OSError:
            continue
    return False


healthy = ready() if listens(HTTP) else listens(EXECUTOR)
sys.exit(0 if healthy else 1)
