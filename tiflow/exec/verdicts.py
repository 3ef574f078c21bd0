"""How a child ended, in words."""

import os
import signal

from tiflow.exec.frames import Message
from tiflow.values import show_bytes


def in_words(message: Message) -> str:
    """Of what the guardian says: an exit, or that it could not be started."""
    if "error" in message:
        return f"could not be started: {message['error']}"
    exit_code, task = os.waitstatus_to_exitcode(message["status"]), message["token"][0] in "cm"
    if exit_code >= 0:
        text = f"exit code {exit_code}" if task else f"ended with exit code {exit_code}"
    else:
        text = f"killed by {_name(-exit_code)}" if task else f"was killed by {_name(-exit_code)}"
    if not message.get("oom"):
        return text
    limit_bytes = message["limit_bytes"]
    return f"{text}: out of memory (oom_kill)" + f", its limit is {show_bytes(limit_bytes)}" * bool(limit_bytes)


def _name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
