"""What is judged of the hooks: do both tell us, at the right place, with the secret and all that we need? Pure."""

import re
import shlex
from typing import NamedTuple

from streamorch import mediamtx_config, signing
from streamorch.doctor.facts import Facts, Verdict
from streamorch.doctor.media import OLDER, differences, entries, is_older, password_in, places
from streamorch.doctor.verdicts import (
    media_server_of,
    ok,
    place,
    right_lines,
    settings_of,
    shown,
    version_of,
    warning,
    worst,
    wrong,
)
from streamorch.mediamtx import PathOptions
from streamorch.settings import Settings

_URL = re.compile(r"https?://[^\s'\"]+")
# What a shell would do something with, as words of their own.
_SHELL = ("|", "||", "&&", ";", ">", ">>", "<", "&")
_NEEDED = {"ready": ("MTX_PATH", "MTX_SOURCE_TYPE", "MTX_SOURCE_ID"), "not-ready": ("MTX_PATH",)}


class Hook(NamedTuple):
    """A hook as a path has it; the line is empty when there is none."""

    name: str
    line: str


def hooks(facts: Facts) -> Verdict:
    """Those that every path inherits."""
    start, end = _of(media_server_of(facts).defaults, facts)
    names = mediamtx_config.hook_names(version_of(media_server_of(facts)))
    if not start.line and not end.line:
        return warning(
            "there are none: streamorch learns by the Control API alone, some seconds late, what is live",
            right_lines(facts, *names),
        )
    problems = {
        name: _problems(hook, name, where, facts)
        for hook, name, where in zip((start, end), names, ("ready", "not-ready"), strict=True)
    }
    tool = "wget" if "wget" in start.line + end.line else "curl"
    mend = right_lines(facts, *(name for name in names if problems[name]), hooks=tool)
    found = [problem._replace(mend=mend) for name in names for problem in problems[name]]
    return worst(found, ok(f"{start.name} and {end.name} tell streamorch"))


def hooks_of_paths(facts: Facts) -> Verdict:
    """Those of entries that have others than they would inherit."""
    inherited = _of(media_server_of(facts).defaults, facts)
    names = mediamtx_config.hook_names(version_of(media_server_of(facts)))
    found = []
    for entry in entries(facts):
        for hook, other, name, where in zip(_of(entry, facts), inherited, names, ("ready", "not-ready"), strict=True):
            if hook.line == other.line:
                continue
            mend = f"in mediamtx.yml, paths, {entry.name}: take out {hook.name}; what pathDefaults has will do"
            found += [
                Verdict(problem.state, f"the entry {entry.name}: {problem.text}", mend)
                for problem in _problems(hook, name, where, facts)
            ]
    return worst(found, ok("no entry of paths has others that do not tell streamorch"))


def _of(path: PathOptions, facts: Facts) -> tuple[Hook, Hook]:
    """The hooks at start and end that count: the ones that call us, else the newest that are set."""
    names = mediamtx_config.hook_names(version_of(media_server_of(facts)))
    starts = [
        Hook(names[0], path.runOnOnline or ""),
        Hook("runOnAvailable", path.runOnAvailable or ""),
        Hook("runOnReady", path.runOnReady or ""),
    ]
    ends = [
        Hook(names[1], path.runOnOffline or ""),
        Hook("runOnUnavailable", path.runOnUnavailable or ""),
        Hook("runOnNotReady", path.runOnNotReady or ""),
    ]
    return _counting(starts, "/webhook/ready"), _counting(ends, "/webhook/not-ready")


def _counting(hooks: list[Hook], place: str) -> Hook:
    calling = [hook for hook in hooks if place in hook.line]
    return (calling or [hook for hook in hooks if hook.line] or hooks)[0]


def _problems(hook: Hook, name: str, where: str, facts: Facts) -> list[Verdict]:
    """What is wrong with the hook that should have this name, and call /webhook/ready or /webhook/not-ready."""
    if not hook.line:
        what = "starts" if where == "ready" else "ends"
        return [wrong(f"{name} is missing: nobody tells when a stream {what}")]
    found = [Verdict(state, f"{hook.name} {text}") for state, text, _ in _judged(hook.line, where, facts)]
    if hook.name != name:
        found.append(warning(f"{hook.name} is not for paths that are always available: {name} is right"))
    return found


def _judged(line: str, where: str, facts: Facts) -> list[Verdict]:
    """What is wrong with a command that should call /webhook/ready or /webhook/not-ready."""
    ours = settings_of(facts)
    index = ("ready", "not-ready").index(where)
    if any(line == mediamtx_config.hook_lines(ours, hooks=tool, revealed=True)[index] for tool in ("curl", "wget")):
        return []
    try:
        words = shlex.split(line)
    except ValueError:
        return [wrong("has a quote that does not end: it does not start")]
    urls = _URL.findall(line)
    if not urls:
        return [warning("runs a command that the doctor cannot look into")]
    url = next((url for url in urls if "/webhook/" in url), urls[0])
    found = []
    if words[0] not in ("sh", "bash") and any(word in _SHELL for word in words):
        found.append(wrong("uses the language of a shell, and MediaMTX runs it without one"))
    if "$" in url:
        return [*found, warning("calls a place that only MediaMTX's environment knows")]
    wanted = f"{ours.callback_url}/webhook/{where}"
    carried = _carried(words, ours)
    found += [
        wrong(text) for text in differences(url, wanted, ours, known=places(facts), has_secret=carried is not None)
    ]
    if is_older(password_in(url) if carried is None else carried, ours):
        found.append(warning(OLDER))
    if not _is_ours(url, facts):
        found.append(wrong(f"calls {shown(url)}, which is not CALLBACK_URL"))
    if missing := [name for name in _NEEDED[where] if not re.search(rf"\$\{{?{name}\b", line)]:
        found.append(wrong(f"does not tell {' and '.join('$' + name for name in missing)}"))
    elif not re.search(r"\$\{?MTX_SOURCE_ID\b", line):
        found.append(warning("does not tell $MTX_SOURCE_ID: streamorch has to look whose end it was"))
    return found


def _is_ours(url: str, facts: Facts) -> bool:
    try:
        return place(url) in places(facts)
    except ValueError:
        return True  # said already


def _carried(words: list[str], ours: Settings) -> str | None:
    """The secret of ours that a header carries, empty where only MediaMTX's environment knows it; None without one."""
    for word in words:
        header = re.match(r"(?:--header=|-H)?Authorization: *(?P<value>.+)", word, re.IGNORECASE)
        if header is None:
            continue
        value = header["value"]
        if "$" in value or not ours.callback_secrets:
            return ""
        given = signing.basic_password(value) or signing.bearer(value) or ""
        return given if signing.matches(given, ours.callback_secrets) else None
    return None
