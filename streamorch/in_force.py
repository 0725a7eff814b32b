"""The settings that are in force: gunicorn's master reads them, and each of its workers goes by those.

A worker that read them by itself could not come up in place of one that has died while a file of theirs is away.
"""

import logging
from collections.abc import Mapping

from streamorch.settings import SettingError, Settings

log = logging.getLogger(__name__)

_settings: Settings | None = None


def read(environ: Mapping[str, str]) -> Settings:
    """Read them, at the start and at each reload. SettingError at the start; later those from before stay in force."""
    global _settings
    try:
        _settings = Settings.from_env(environ)
    except SettingError as error:
        if _settings is None:
            raise
        log.error("the settings cannot be reloaded, and stay as they were", extra={"reason": str(error)})
    return _settings


def settings(environ: Mapping[str, str]) -> Settings:
    """Those in force; read now where no master has read them before the fork."""
    return _settings or read(environ)
