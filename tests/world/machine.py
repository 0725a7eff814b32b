"""What may happen in the world, drawn by hypothesis; after every step all that the service promises is looked at.

Each draw is a number of a fixed range, and picks among what there is at the moment: what is drawn never depends on
what happened, so an example is the same when it is played again.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, TypeVar
from uuid import UUID

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.world import oracle
from tests.world.actors import LEASE_SECONDS, RATE, Encoder, Hook, World, told
from tests.world.oracle import GRANTED, MISTAKES, Happening, Key, Row

T = TypeVar("T")

PATHS = ("live/a", "live/b", "live/c", "live/d")
KINDS = ("stalled", "stalled", "always", "never")
PROTOCOLS = ("rtmp", "rtsp", "srt", "webrtc")
FAULTS = ("refused", "500", "silent", "paths 500", "list 500", "list half", "list hang", "off")
EXPIRIES = (None, None, 30, 90)

# What happens, and how often.
ACTIONS = {
    "publish": 12,
    "rival": 10,
    "connect": 4,
    "be_too_late": 2,
    "ask_again": 2,
    "go_live": 6,
    "leave": 7,
    "freeze_or_flow": 5,
    "readers": 2,
    "hook": 12,
    "pass_time": 6,
    "tick": 9,
    "tick_while": 8,
    "settle": 2,
    "stop_stream": 3,
    "expire_key": 3,
    "disable_key": 2,
    "revoke_key": 2,
    "bind_key": 2,
    "change_takeover": 2,
    "lift_hold": 1,
    "make_key": 2,
    "rotate_key": 3,
    "move_overlap": 1,
    "disable_broadcaster": 2,
    "disable_in_the_table": 2,
    "delete_broadcaster": 1,
    "fail": 4,
    "heal": 4,
    "restart": 2,
    "be_forgotten": 3,
    "foil_kick": 2,
}
HOOKS = ("once", "once", "once", "once", "twice", "twice", "lost", "unnamed")
SECONDS = (1, 2, 2, 6, 6, LEASE_SECONDS + 1, LEASE_SECONDS + 1, 65)

# What the contract describes; a 5xx has no cause in this world.
_DESCRIBED = {
    "/auth": {200, 401},
    "/webhook/ready": {204, 404},
    "/webhook/not-ready": {204},
    "GET /streams": {200, 304},
    "POST": {201, 400, 404, 409},
    "PATCH": {200, 404, 409},
    "DELETE": {204, 404},
    "GET": {200, 404},
}

few = st.integers(0, 3)


class Draw(NamedTuple):
    """How an action is done: upon which of those that there are, and the rest as each action has it."""

    of: int
    more: int
    protocol: int
    is_so: bool


draws = st.builds(Draw, st.integers(0, 7), few, few, st.booleans())


def pick(from_: Sequence[T], number: int) -> T | None:
    """One of them; None when there is none."""
    return from_[number % len(from_)] if from_ else None


class Machine(RuleBasedStateMachine):
    """One example. `world` is set by whoever runs it; the counters add up over all examples."""

    world: ClassVar[World]
    examples: ClassVar[int] = 0
    played: ClassVar[Counter[str]] = Counter()
    answers: ClassVar[Counter[str]] = Counter()
    ends: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        type(self).examples += 1
        self.world.begin()
        self.etag = ""
        self.shown: list[dict[str, Any]] = []
        self.is_sound = False
        self.before: dict[UUID, Row] = {}
        self.rightful: list[Encoder] = []
        self.look_at_the_list(is_changed=None)

    # --- keys and who holds them ----------------------------------------------------------------------------------

    @initialize(kinds=st.tuples(*[st.tuples(st.integers(0, 5), few, few) for _ in range(4)]), sees=st.booleans())
    def begin(self, kinds: tuple[tuple[int, int, int], ...], sees: bool) -> None:
        """Two broadcasters with two keys each; the media server was seen before, or not."""
        for _ in range(2):
            self.world.new_broadcaster()
        for number, (path, takeover, lasts) in enumerate(kinds):
            bound = PATHS[(path + number // 2) % 4] if path < 4 else None
            self.world.new_key(self.world.broadcasters[number % 2], bound, KINDS[takeover], EXPIRIES[lasts])
        if sees:
            self.world.tick(0)
        self.judge("begin", Happening(is_tick=True))

    @rule(what=st.sampled_from([name for name, weight in ACTIONS.items() for _ in range(weight)]), draw=draws)
    def happens(self, what: str, draw: Draw) -> None:
        """One of the actions; a publish where there is nothing to do it upon."""
        count = self.played.total()
        getattr(self, what)(draw)
        if self.played.total() == count:
            self.publish(draw)

    def make_key(self, draw: Draw) -> None:
        """A new key; of a new broadcaster, where all have been deleted."""
        if all(owner.is_deleted for owner in self.world.broadcasters):
            self.world.new_broadcaster()
        owner = self.world.broadcasters[draw.of % len(self.world.broadcasters)]
        bound = PATHS[draw.more] if draw.is_so else None
        is_taken = bound and any(row.is_open and row.path == bound for row in self.world.rows.values())
        before = len(self.world.keys)
        self.world.new_key(owner, bound, KINDS[draw.of % 4], EXPIRIES[draw.of % 3])
        assert len(self.world.keys) > before or owner.is_deleted or is_taken, self.story("a key was refused")
        self.judge("make_key", Happening())

    def disable_key(self, draw: Draw) -> None:
        """Or the reverse; preferably of one that is so."""
        is_disabled = draw.more == 0
        self.change_key(
            "disable_key", self.a_key(draw.of, lambda key: key.is_disabled != is_disabled), disabled=is_disabled
        )

    def expire_key(self, draw: Draw) -> None:
        """Now, soon, later or never: an expired key is extended."""
        now = self.world.now()
        moment = (None, oracle.later(now, 60), oracle.later(now, 15), oracle.later(now, -5))[draw.more]
        key = self.a_key(draw.of, lambda key: ("expired" in key.lost_right(now)) == (draw.more < 2))
        self.change_key("expire_key", key, expires_at=moment)

    def bind_key(self, draw: Draw) -> None:
        self.change_key("bind_key", self.a_key(draw.of), path=PATHS[draw.more] if draw.is_so else None)

    def change_takeover(self, draw: Draw) -> None:
        self.change_key("change_takeover", self.a_key(draw.of), takeover=KINDS[draw.more])

    def lift_hold(self, draw: Draw) -> None:
        now = self.world.now()
        self.change_key("lift_hold", self.a_key(draw.of, lambda key: key.is_held(now)), hold_until=None)

    def rotate_key(self, draw: Draw) -> None:
        """For long, for a moment, or without an overlap; an encoder with the old value comes at once, or later."""
        key = self.a_key(draw.of)
        status = self.world.rotate_key(key, (3600, 15, 0, 60)[draw.more])
        expected = 404 if key.broadcaster.is_deleted else 409 if key.is_revoked else 201
        assert status == expected, self.story(f"rotate: {status}")
        self.judge("rotate_key", Happening())
        if draw.is_so:
            path = key.path or PATHS[draw.more]
            self.newcomer(key, path, draw.protocol, value=key.previous_value)
            self.judge("rotate_key", Happening())

    def move_overlap(self, draw: Draw) -> None:
        """The end of an overlap comes now, or sooner, or later; of one that is over it does not move."""
        now = self.world.now()
        until = (None, oracle.later(now, -5), oracle.later(now, 15), oracle.later(now, 3600))[draw.more]
        key = self.a_key(draw.of, lambda key: key.previous_works_until is not None)
        lasts = key.previous_works_until is not None and key.previous_works_until > now
        if key.broadcaster.is_deleted or key.is_revoked or lasts or draw.more < 2:
            self.change_key("move_overlap", key, previous_works_until=until if lasts else None)
            return
        status = self.world.change_key(key, previous_works_until=until)
        assert status == 409, self.story(f"PATCH of an overlap that is over: {status}")
        self.judge("move_overlap", Happening())

    def a_key(self, number: int, is_wanted: Callable[[Key], bool] = lambda key: True) -> Key:
        """One of them, and of those that are wanted if there is one."""
        wanted = [key for key in self.world.keys if is_wanted(key) and not key.is_revoked]
        keys = wanted or self.world.keys
        return keys[number % len(keys)]

    def in_use(self) -> list[Key]:
        return [self.key_of(row) for row in self.world.rows.values() if row.is_open]

    def change_key(self, name: str, key: Key, **changes: Any) -> None:
        status = self.world.change_key(key, **changes)
        if key.broadcaster.is_deleted:
            assert status == 404, self.story(f"PATCH of a key that is gone: {status}")
        elif key.is_revoked:
            assert status == 409, self.story(f"PATCH of a revoked key: {status}")
        elif status == 200:
            for member, value in changes.items():
                setattr(key, {"disabled": "is_disabled"}.get(member, member), value)
        else:
            wanted = changes.get("path")
            in_the_way = [
                row
                for row in self.world.rows.values()
                if row.is_open and (row.stream_key_id == key.id) != (row.path == wanted)
            ]
            assert status == 409, self.story(f"PATCH: {status}")
            assert wanted, self.story(f"PATCH: {status}")
            assert in_the_way, self.story(f"PATCH: {status}")
        self.judge(name, Happening())

    def revoke_key(self, draw: Draw) -> None:
        """One that is in use, if there is one; or any, also one that is revoked already."""
        keys = self.in_use() if draw.more else self.world.keys
        self.revoke(pick(keys or self.world.keys, draw.of) or self.world.keys[0])
        self.judge("revoke_key", Happening())

    def revoke(self, key: Key) -> None:
        status = self.world.call("DELETE", f"/stream-keys/{key.id}").status
        self.world.note(f"key {self.world.keys.index(key)} is revoked")
        assert status == 204, self.story(f"DELETE: {status}")
        key.is_revoked = True

    def disable_broadcaster(self, draw: Draw) -> None:
        """Or the reverse."""
        is_disabled = draw.more == 0
        others = [owner for owner in self.world.broadcasters if owner.is_disabled != is_disabled]
        owner = pick(others or self.world.broadcasters, draw.of)
        assert owner is not None
        status = self.world.call("PATCH", f"/broadcasters/{owner.id}", {"disabled": is_disabled}).status
        self.world.note(f"broadcaster {self.world.broadcasters.index(owner)}: disabled {is_disabled}: {status}")
        assert status == (404 if owner.is_deleted else 200), self.story(f"PATCH: {status}")
        if not owner.is_deleted:
            owner.is_disabled = is_disabled
        self.judge("disable_broadcaster", Happening())

    def disable_in_the_table(self, draw: Draw) -> None:
        """By hand, past the service: the next tick draws the conclusions."""
        owners = [key.broadcaster for key in self.in_use()] or self.world.broadcasters
        owner = owners[draw.of % len(owners)]
        self.world.conn.execute("UPDATE broadcasters SET disabled_at = clock_timestamp() WHERE id = %s", [owner.id])
        owner.is_disabled = True
        self.world.note(f"broadcaster {self.world.broadcasters.index(owner)} is disabled by hand")
        self.judge("disable_in_the_table", Happening())

    def delete_broadcaster(self, draw: Draw) -> None:
        owner = self.world.broadcasters[draw.of % len(self.world.broadcasters)]
        status = self.world.call("DELETE", f"/broadcasters/{owner.id}").status
        self.world.note(f"broadcaster {self.world.broadcasters.index(owner)} is deleted")
        assert status == 204, self.story(f"DELETE: {status}")
        owner.is_deleted = True
        for key in self.world.keys:
            key.is_revoked |= key.broadcaster is owner
        self.judge("delete_broadcaster", Happening())

    def stop_stream(self, draw: Draw) -> None:
        """With or without a hold; also one that has ended, which changes nothing."""
        rows = sorted(self.world.rows.values(), key=lambda row: (not row.is_open, row.claimed_at))
        row = pick(rows, draw.of)
        if row is None:
            return
        hold = 30 if draw.more < 2 else 0
        with_it = {other.id for other in rows if hold and other.stream_key_id == row.stream_key_id and other.is_pending}
        asked_at = self.world.now()
        status = self.world.call("DELETE", f"/streams/{row.id}?hold_seconds={hold}").status
        self.world.note(f"the stream on {row.path} is stopped, hold {hold}")
        assert status == 204, self.story(f"DELETE: {status}")
        if not row.is_open:
            with_it = set()
        elif hold:
            key = self.key_of(row)
            until = self.world.hold_until(key)
            earliest = max(oracle.later(asked_at, hold), key.hold_until or asked_at)
            latest = max(oracle.later(self.world.now(), hold), key.hold_until or asked_at)
            assert earliest <= until <= latest, self.story(f"a hold until {until}")
            key.hold_until = until
        self.judge("stop_stream", Happening(stopped={row.id} | with_it))

    # --- encoders ---------------------------------------------------------------------------------------------------

    def connect(self, draw: Draw) -> None:
        """An encoder comes and asks; preferably with a key that has no right, or with none at all."""
        now = self.world.now()
        bad: list[Key | None] = [key for key in self.world.keys if key.lost_right(now) or key.is_held(now)]
        key = pick([*bad, None], draw.of) if draw.more else pick(self.world.keys, draw.of)
        path = key.path if key and key.path and draw.of % 2 else PATHS[draw.more]
        value = key.previous_value if key and draw.protocol % 2 else None
        self.newcomer(key, path, draw.protocol, is_answer_lost=draw.is_so, value=value)
        self.judge("connect", Happening())

    def publish(self, draw: Draw) -> None:
        """One that may, if there is a key for it; mostly it goes live at once."""
        now = self.world.now()
        around = self.world.circumstances()

        def may(key: Key) -> bool:
            return oracle.claim(key, key.path or PATHS[draw.more], "", now, around) == {"claimed"}

        key = self.a_key(draw.of, may)
        encoder = self.newcomer(key, key.path or PATHS[draw.more], draw.protocol)
        self.judge("publish", Happening())
        if encoder is not None and encoder.is_granted and draw.of < 6:
            self.start(encoder, draw.is_so)
            self.judge("publish", Happening())

    def be_too_late(self, draw: Draw) -> None:
        """An encoder with a good key asks, which is revoked in that moment."""
        now = self.world.now()
        key = self.a_key(draw.of)
        path = key.path or PATHS[draw.more]
        rows = [row for row in self.world.rows.values() if row.is_open]
        around = self.world.circumstances()
        is_free = all(row.stream_key_id != key.id for row in rows)
        if not is_free or oracle.claim(key, path, "", now, around) != {"claimed"}:
            return
        if self.world.fault == f"off {PROTOCOLS[draw.protocol]}":
            return
        encoder = self.world.connect(key, path, PROTOCOLS[draw.protocol])
        status, slug = self.world.ask_too_late(encoder)
        self.world.note("it was too late")
        assert slug in ("stream-key-revoked", "database-unavailable"), self.story(f"{status} {slug} for a revoked key")
        self.world.heard[:] = [heard for heard in self.world.heard if heard.slug != "database-unavailable"]
        self.world.leave(encoder)
        self.judge("be_too_late", Happening())

    def rival(self, draw: Draw) -> None:
        """A second encoder with the key of a stream that is open."""
        row = pick([row for row in self.world.rows.values() if row.is_open], draw.of)
        if row is None:
            return
        path = row.path if draw.more else PATHS[PATHS.index(row.path) - 1]
        key = self.key_of(row)
        # One in two has not heard of the new value.
        encoder = self.newcomer(key, path, draw.protocol, value=key.previous_value if draw.of % 2 else None)
        self.judge("rival", Happening())
        if encoder is not None and encoder.is_granted and draw.is_so:
            self.start(encoder, hook=True)
            self.judge("rival", Happening())

    def newcomer(
        self, key: Key | None, path: str, protocol: int, *, is_answer_lost: bool = False, value: str | None = None
    ) -> Encoder | None:
        """It comes and asks, and goes when it is refused; None where its protocol is switched off."""
        name = PROTOCOLS[protocol]
        if self.world.fault == f"off {name}":
            return None
        encoder = self.world.connect(key, path, name, value=value)
        self.ask(encoder)
        if is_answer_lost and encoder.is_granted:
            self.world.note("the answer is lost")
            encoder.is_granted = False
        if not encoder.is_granted:
            self.world.leave(encoder)
        return encoder

    def ask_again(self, draw: Draw) -> None:
        """A connection that is let in is asked for once more."""
        known = pick([e for e in self.world.encoders if e.is_granted and self.world.is_connected(e)], draw.of)
        if known is None:
            return
        was_granted = known.is_granted
        self.ask(known)
        if was_granted and not known.is_granted:
            self.world.leave(known)
        self.judge("ask_again", Happening())

    def ask(self, encoder: Encoder) -> None:
        """The question, and whether its answer is one that was to be expected."""
        self.world.read()  # a tick may be under way
        path, auth_id = encoder.publisher.path, encoder.publisher.auth_id
        around = self.world.circumstances()
        before = self.world.now()
        status, slug = self.world.ask(encoder)
        type(self).answers[slug or str(status)] += 1
        expected = set[str]().union(
            *(
                oracle.claim(encoder.key, path, auth_id, now, around, encoder.value)
                for now in (before, self.world.now())
            )
        )
        may = bool(expected & set(GRANTED))
        if status == 200:
            assert may, self.story(f"let in, and {expected} was expected")
            encoder.is_granted = True
            self.world.read()
            row = self.world.row_of(encoder)
            assert row is not None, self.story("let in without a stream")
            assert encoder.key is not None
            assert (row.is_open, row.path, row.stream_key_id) == (True, path, encoder.key.id), self.story(
                "another stream"
            )
        else:
            assert slug in expected, self.story(f"refused as {slug}, and {expected} was expected")
            encoder.is_granted = False

    def go_live(self, draw: Draw) -> None:
        waiting = pick(self.world.waiting(), draw.of)
        if waiting is None:
            return
        self.start(waiting, draw.is_so)
        self.judge("go_live", Happening())

    def start(self, encoder: Encoder, hook: bool) -> None:
        """Its media comes; its hook comes at once, or some time."""
        self.world.go_live(encoder)
        if hook:
            self.tell(self.world.hooks.pop())

    def leave(self, draw: Draw) -> None:
        connected = pick([e for e in self.world.encoders if self.world.is_connected(e)], draw.of)
        if connected is None:
            return
        was_live = connected.publisher.is_live
        self.world.leave(connected)
        if draw.is_so and was_live:
            self.tell(self.world.hooks.pop())
        self.judge("leave", Happening())

    def freeze_or_flow(self, draw: Draw) -> None:
        live = pick(self.world.live(), draw.of)
        if live is None:
            return
        live.is_flowing = draw.is_so
        self.world.fake.flow(live.publisher, RATE if draw.is_so else 0)
        self.world.note(f"{live} {'flows' if draw.is_so else 'stands still'}")
        self.judge("freeze_or_flow", Happening())

    def readers(self, draw: Draw) -> None:
        """Viewers come, or all of them go."""
        live = pick(self.world.live(), draw.of)
        if live is None:
            return
        where = live.publisher.path
        kind = "srtConn" if self.world.fault == "off webrtc" else "webRTCSession"
        if draw.more:
            self.world.fake.read(where, kind, draw.more)
        else:
            self.world.fake.unread(where)
        self.judge("readers", Happening())

    # --- hooks ------------------------------------------------------------------------------------------------------

    def hook(self, draw: Draw) -> None:
        """Any of those on their way arrives, or does not."""
        chosen = pick(self.world.hooks, draw.of)
        if chosen is None:
            return
        how = HOOKS[2 * draw.more + draw.is_so]
        if how != "twice":
            self.world.hooks.remove(chosen)
        if how == "lost":
            self.world.note(f"hook of {chosen.encoder} is lost")
            return
        self.judge("hook", self.tell(chosen, is_named=how != "unnamed"))

    def tell(self, hook: Hook, *, is_named: bool = True) -> Happening:
        """It arrives; what may follow."""
        self.world.read()  # a tick may be under way
        path = hook.encoder.publisher.path
        before = self.world.row_of(hook.encoder)
        active = next((row for row in self.world.rows.values() if row.is_active and row.path == path), None)
        status = self.world.deliver(hook, is_named=is_named)
        if hook.is_ready and status == 404:
            assert before is None or not before.is_active, self.story("a hook was refused whose stream is live")
        is_unsure = not hook.is_ready and not is_named and active and self.world.is_silent_about(active.protocol)
        return Happening(unnamed={path} if is_unsure else ())

    # --- time and the media server ------------------------------------------------------------------------------------

    def pass_time(self, draw: Draw) -> None:
        self.world.pass_time(SECONDS[draw.of])
        self.world.read()
        self.look_at_the_list(is_changed=None)
        self.judge("pass_time", Happening())

    def restart(self, draw: Draw) -> None:
        """With its last hooks, or without."""
        self.world.restart(hooks=draw.more < 2)
        self.judge("restart", Happening())

    def fail(self, draw: Draw) -> None:
        """Who is cut off because a protocol is switched off comes back over another, mostly before its hook."""
        kind = FAULTS[draw.of]
        self.world.fail(kind, PROTOCOLS[draw.more])
        self.judge("fail", Happening())
        if kind == "off":
            lost = [row for row in self.world.rows.values() if row.is_open and row.protocol == PROTOCOLS[draw.more]]
            if row := pick(lost, draw.protocol):
                self.newcomer(self.key_of(row), row.path, (draw.more + 1) % 4)
                self.judge("fail", Happening())

    def be_forgotten(self, draw: Draw) -> None:
        """The Control API is away for two ticks: what is live counts as lost. Then another key claims its path."""
        if not self.world.live():
            return
        self.world.fail("refused", "rtmp")
        for _ in range(2):
            self.judge("be_forgotten", self.ticked(draw.of % 2))
        if draw.is_so:
            self.world.heal()
        now, around = self.world.now(), self.world.circumstances()
        for of in self.world.live():
            path = of.publisher.path
            others = [key for key in self.world.keys if key is not of.key]
            able = [key for key in others if oracle.claim(key, path, "", now, around) == {"claimed"}]
            if key := pick(able, draw.of):
                encoder = self.newcomer(key, path, draw.protocol)
                if encoder is not None and encoder.is_granted and draw.more == 0:
                    self.start(encoder, draw.is_so)
                self.judge("usurp", Happening())
                return

    def heal(self, draw: Draw) -> None:
        self.world.heal()
        self.world.note("all is well")
        self.judge("heal", Happening())

    def foil_kick(self, draw: Draw) -> None:
        """The next kick of a connection is ignored, or finds it gone."""
        connected = pick([e for e in self.world.encoders if self.world.is_connected(e)], draw.of)
        if connected is None:
            return
        connected.is_foiled = True
        if draw.more < 2:
            self.world.fake.vanish_before_kick(connected.publisher)
        else:
            self.world.fake.ignore_kicks(connected.publisher, times=1)
        self.judge("foil_kick", Happening())

    # --- the reconciler -----------------------------------------------------------------------------------------------

    def tick(self, draw: Draw) -> None:
        self.judge("tick", self.ticked(draw.of % 2))

    def ticked(self, number: int, meanwhile: Callable[[], None] | None = None) -> Happening:
        """A reconciler ticks; what may follow."""
        may_be_another = self.world.was_refused or self.world.is_restart_news
        self.world.tick(number, meanwhile)
        since = self.world.failing_since
        is_long = since is not None and (self.world.now() - since).total_seconds() >= 15
        return Happening(
            is_tick=True,
            is_api_lost=self.world.failing_ticks >= 2 or is_long,
            is_another_run=may_be_another,
        )

    def tick_while(self, draw: Draw) -> None:
        """Something happens between the two questions of a tick, so that its snapshot is of before."""

        def other_leads() -> None:
            self.world.tick(1 - draw.protocol % 2)

        def goes_live() -> None:
            if waiting := pick(self.world.waiting(), draw.of):
                self.start(waiting, draw.is_so)

        def leaves() -> None:
            if live := pick(self.world.live(), draw.of):
                self.world.leave(live)
                if draw.is_so:
                    self.tell(self.world.hooks.pop())

        def hook_comes() -> None:
            if chosen := pick(self.world.hooks, draw.of):
                self.world.hooks.remove(chosen)
                self.tell(chosen)

        def publishes() -> None:
            key = self.a_key(draw.of)
            encoder = self.newcomer(key, key.path or PATHS[draw.more], protocol=0)
            if encoder is not None and encoder.is_granted:
                self.start(encoder, draw.is_so)

        def is_revoked() -> None:
            self.revoke(self.world.keys[draw.of % len(self.world.keys)])

        def meanwhile() -> None:
            self.world.note("meanwhile:")
            (other_leads, goes_live, leaves, hook_comes, publishes, is_revoked)[(draw.more + 4 * (draw.of % 2)) % 6]()

        self.judge("tick_while", self.ticked(draw.protocol % 2, meanwhile))

    def settle(self, draw: Draw | None = None) -> None:
        """The media server can be asked; after two ticks the table is what it says."""
        self.world.heal()
        self.world.note("settle")
        for _ in range(2):
            self.world.pass_time(2)
            self.world.read()
            self.look_at_the_list(is_changed=None)
            asked_at = self.world.now()
            self.judge("settle", self.ticked(0))
        self.compare_with_the_media_server(asked_at)

    def teardown(self) -> None:
        if self.is_sound:
            self.settle()

    # --- what is promised ---------------------------------------------------------------------------------------------

    def story(self, what: str) -> str:
        """What went wrong, and all that led to it."""
        rows = "\n".join(map(str, self.world.rows.values()))
        return "\n".join([what, *self.world.journal, rows, what])

    def key_of(self, row: Row) -> Key:
        return next(key for key in self.world.keys if key.id == row.stream_key_id)

    def judge(self, name: str, happening: Happening) -> None:
        """Look at everything after a step."""
        self.is_sound = False
        type(self).played[name] += 1
        world = self.world
        was = self.before
        world.read()
        now = world.now()
        for row in world.rows.values():
            assert (wrong := oracle.wrong_row(row)) is None, self.story(f"{wrong}: {row}")
        assert (wrong := oracle.wrong_crowd(world.rows.values())) is None, self.story(str(wrong))
        for row in was.values():
            wrong = oracle.wrong_change(row, world.rows.get(row.id), happening)
            assert wrong is None, self.story(f"{wrong}: {row}")
        ended = [row for row in world.rows.values() if not row.is_open and (row.id not in was or was[row.id].is_open)]
        for row in ended:
            may = oracle.may_have_ended(row, self.key_of(row), world.truth(row), now, world.rows.values(), happening)
            assert may, self.story(f"it ended for no reason: {row}")
            type(self).ends[row.end_reason or ""] += 1
        self.judge_rightful(now, happening)
        self.judge_closed(was, ended, now, happening)
        never_shown = any(row.id not in was or not was[row.id].is_active for row in ended)
        self.look_at_the_list(is_changed=None if never_shown else True)
        self.judge_answers()
        self.before = dict(world.rows)
        self.rightful = [encoder for encoder in world.live() if self.is_rightful(encoder, now)]
        self.is_sound = True

    def is_rightful(self, encoder: Encoder, now: datetime) -> bool:
        """Is it live, and its stream with it?"""
        row = self.world.row_of(encoder)
        return (
            row is not None
            and row.is_active
            and row.source_id == encoder.publisher.source_id
            and encoder.key is not None
            and not encoder.key.lost_right(now)
        )

    def judge_rightful(self, now: datetime, happening: Happening) -> None:
        """What was live and rightful, and still is, goes on."""
        for encoder in self.rightful:
            if encoder.has_left or self.is_rightful(encoder, now):
                continue
            row = self.world.row_of(encoder)
            assert row is not None, self.story(f"{encoder} has no stream any more")
            assert encoder.key is not None
            if encoder.key.lost_right(now) or row.id in happening.stopped:
                continue
            is_fair = {
                "superseded": True,  # by one that was let in, see `ask`
                "server_lost": happening.is_api_lost,
                "disconnected": row.path in happening.unnamed,
            }
            assert is_fair.get(row.end_reason or "", False), self.story(f"{encoder} was live and rightful")

    def judge_closed(self, was: dict[UUID, Row], ended: list[Row], now: datetime, happening: Happening) -> None:
        """Who was closed had no right; who lost it was closed, at once where somebody took it."""
        world = self.world
        both = [*was.values(), *world.rows.values()]
        for encoder in world.encoders:
            if encoder.has_left or world.is_connected(encoder):
                continue
            encoder.has_left = True
            world.note(f"{encoder} is closed by the service")
            if encoder.was_live:
                world.hooks.append(Hook(False, encoder))
            may = oracle.may_be_closed(world.row_of(encoder), encoder.key, now, both)
            assert may, self.story(f"{encoder} was closed")
        for encoder in world.encoders:
            if encoder.publisher.source_id in world.fake.kicks:
                may = oracle.may_be_closed(world.row_of(encoder), encoder.key, now, both)
                assert may, self.story(f"{encoder} was kicked")
        world.fake.kicks.clear()
        assert world.early == [], self.story(f"closed before the end was committed: {world.early}")
        taken = [row for row in ended if row.end_reason not in (*MISTAKES, "superseded")]
        for row in taken:
            assert row.id not in world.not_ended_yet, self.story(f"its closing was asked for before its end: {row}")
        world.not_ended_yet.clear()
        if happening.is_tick or world.fault:
            return
        for row in taken:
            of = world.encoder_of(row)
            if of is None or of.is_foiled:
                continue
            if row.protocol == "rtsp" and (row.source_id is None or not of.publisher.is_live):
                continue  # it is waited for until it is live
            assert not world.is_connected(of), self.story(f"{of} is {row.end_reason} and still there")

    def look_at_the_list(self, *, is_changed: bool | None = True) -> None:
        """The list over HTTP is what the table says; a new ETag when it shows something else, and only then.

        `is_changed` None: or when no writer of the service did it, or a stream ended that it never showed.
        """
        headers = {"If_None_Match": self.etag} if self.etag else {}
        reply = self.world.call("GET", "/streams", None, **headers)
        shown = self.shown
        if reply.status == 200:
            shown = reply.body["streams"]
            if is_changed is not None:
                assert shown != self.shown, self.story("another ETag for the same list")
            self.etag, self.shown = reply.headers["ETag"], shown
        else:
            assert reply.status == 304, self.story(f"the list: {reply}")
        listed = [told(stream) for stream in shown]
        assert listed == self.world.listed, self.story(f"the list shows {listed}, the table has {self.world.listed}")

    def judge_answers(self) -> None:
        """Each answer is one of those described, and each error a problem."""
        for heard in self.world.heard:
            described = next(
                statuses
                for name, statuses in _DESCRIBED.items()
                if name in (heard.path, f"{heard.method} {heard.path}", heard.method)
            )
            assert heard.status in described, self.story(f"an answer that nobody described: {heard}")
            assert (heard.slug is not None) == (heard.status >= 400), self.story(
                f"an error that is no problem: {heard}"
            )
        self.world.heard.clear()

    def compare_with_the_media_server(self, asked_at: datetime) -> None:
        """The table equals the media server, as of the last tick."""
        world = self.world
        now = world.now()
        live = {encoder.publisher.source_id: encoder for encoder in world.live()}
        for encoder in live.values():
            if world.is_nameless(encoder) and encoder.publisher.source_id in world.unclaimed:
                continue  # of whom nobody knows whose it is: it is reported
            if encoder.key and encoder.key.lost_right(now) != encoder.key.lost_right(asked_at):
                continue  # in this moment
            assert self.is_rightful(encoder, now), self.story(f"{encoder} is live after two ticks, and its stream not")
        for row in world.rows.values():
            if row.is_active and row.source_id not in live:
                successors = [other for other in world.rows.values() if other.is_pending and other.replaces == row.id]
                assert successors, self.story(f"it is active after two ticks, and not live: {row}")
            elif row.is_active:
                viewers = world.fake.readers(row.path)
                assert world.viewers[row.id] == viewers, self.story(f"{viewers} watch {row}")
            elif row.is_pending:
                of = world.encoder_of(row)
                is_there = of is not None and world.is_connected(of) and row.lease_expires_at > asked_at
                assert is_there, self.story(f"it is pending after two ticks: {row}")
            if row.is_open:
                assert not self.key_of(row).lost_right(asked_at), self.story(
                    f"it is open, and its key has no right: {row}"
                )


# The newest; and two of those in which auth names RTSP publishers by their connection. The oldest does not even tell
# which connection a session belongs to.
VERSIONS = ("v1.20.1", "v1.12.3", "v1.9.3")
STEPS = 30


def machine(world: World, *, seed: int | None = None) -> type[Machine]:
    """The machine of this world; its examples follow from the seed."""
    made = type(
        "Machine",
        (Machine,),
        {"world": world, "examples": 0, "played": Counter(), "answers": Counter(), "ends": Counter()},
    )
    return made if seed is None else hypothesis.seed(seed)(made)


def settings_of(examples: int, *, derandomize: bool = False, shrink: bool = False) -> hypothesis.settings:
    """So many examples, as slow as they are. The story of one that fails is made short when `shrink`: minutes."""
    phases = [hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if shrink else [])]
    return hypothesis.settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        phases=phases,
        derandomize=derandomize,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
    )
