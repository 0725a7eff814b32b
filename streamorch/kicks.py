"""Closing connections that may not go on: after the commit that took the right away, and verified.

The order is commit, deny, kick, verify: an encoder reconnects at once, and must find itself refused.
"""

import logging
import time
from collections.abc import Callable, Sequence

from streamorch.mediamtx import ControlAPI, NoAnswer
from streamorch.repositories.streams import Kick

log = logging.getLogger(__name__)

_REQUEST_SECONDS = 0.3
_VERIFY_SECONDS = 0.3
_PAUSE_SECONDS = 0.02


def carry_out(
    api: ControlAPI, kicks: Sequence[Kick], *, may_go_on: Callable[[], bool], done: Callable[[Kick], None]
) -> int:
    """Close these connections, each while `may_go_on`; returns how many are gone, each told to `done`.

    What does not answer, or is still there, is left to the reconciler, which asks again at every tick.
    """
    gone = 0
    for kick in kicks:
        if not may_go_on():
            break
        try:
            is_gone = _close(api, kick)
        except NoAnswer as error:
            log.warning("kick without an answer", extra=_facts(kick) | {"reason": str(error)})
            break
        log.info("kicked" if is_gone else "kicked, and still there", extra=_facts(kick))
        if is_gone:
            gone += 1
            done(kick)
    return gone


def _close(api: ControlAPI, kick: Kick) -> bool:
    """Is it gone now? It may have been gone before."""
    api.close(kick.protocol, kick.connection_id, kick.path, seconds=_REQUEST_SECONDS)
    deadline = time.monotonic() + _VERIFY_SECONDS
    while api.connection(kick.protocol, kick.connection_id, seconds=_REQUEST_SECONDS) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_SECONDS)
    return True


def _facts(kick: Kick) -> dict[str, object]:
    return {"stream_id": kick.stream_id, "path": kick.path, "connection_id": kick.connection_id}
