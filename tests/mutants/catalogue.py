"""The mutants: which text of which file becomes what, and which tests notice. Data alone."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """`old` stands exactly once in `file`; with `new` in its place one of `tests` fails."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied_to(self, text: str) -> str:
        """The text of the file with the fault in it; ValueError when it is not there to be broken."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.file} has {text.count(self.old)} times {self.old!r}")
        return text.replace(self.old, self.new)


_AUTH = ("tests/blueprints/test_auth.py",)
_HOOKS = ("tests/blueprints/test_webhooks.py",)
_ROTATION = ("tests/test_rotation.py",)
_RECONCILER = ("tests/test_reconciler.py",)


def _story(name: str) -> tuple[str, ...]:
    """A story of the model of the world."""
    return (f"tests/test_world.py::test_a_story_ends_as_it_must[{name}]",)


_ALL = (
    # --- who is let in ---
    Mutant(
        "a-replaced-value-is-let-in",
        "sql/0009_rotation.sql",
        "WHEN key.revoked_at IS NOT NULL OR key.is_replaced THEN",
        "WHEN key.revoked_at IS NOT NULL THEN",
        _story("a replaced value comes back"),
    ),
    Mutant(
        "the-old-value-is-out-at-once",
        "sql/0009_rotation.sql",
        "k.previous_works_until <= moment AS is_replaced",
        "true AS is_replaced",
        _story("a value comes back while it works on"),
    ),
    Mutant(
        "a-rotation-ends-what-is-live",
        "sql/0009_rotation.sql",
        "    outcome := 'rotated';\n",
        "    PERFORM end_streams_of_keys_v1(ARRAY[p_id], 'revoked');\n    outcome := 'rotated';\n",
        _ROTATION,
    ),
    Mutant(
        "the-older-of-two-old-values-stays",
        "sql/0009_rotation.sql",
        "        previous_key_hash = k.key_hash,\n",
        "        previous_key_hash = CASE WHEN k.previous_works_until > moment THEN k.previous_key_hash ELSE k.key_hash END,\n",
        _ROTATION,
    ),
    Mutant(
        "an-overlap-that-is-over-comes-back",
        "sql/0009_rotation.sql",
        "        ELSIF wanted_end > moment THEN\n            outcome := 'overlap-over';\n            RETURN;\n        ELSE\n",
        "        ELSIF wanted_end <= moment THEN\n",
        _ROTATION,
    ),
    Mutant(
        "an-overlap-lasts-for-ever",
        "sql/0009_rotation.sql",
        "            IF wanted_end > greatest(before.previous_works_until, moment + interval '30 days') THEN\n",
        "            IF false THEN\n",
        _ROTATION,
    ),
    Mutant(
        "a-stream-tells-the-newest-value",
        "sql/0009_rotation.sql",
        "CASE WHEN k.key_hash = p_key_hash THEN k.hint ELSE k.previous_hint END",
        "k.hint",
        _ROTATION,
    ),
    Mutant(
        "an-expired-key-is-let-in",
        "sql/0009_rotation.sql",
        "        WHEN key.expires_at <= moment THEN 'stream-key-expired'\n",
        "",
        _story("an expired key comes back"),
    ),
    Mutant(
        "a-revoked-key-is-let-in",
        "sql/0009_rotation.sql",
        "WHEN key.revoked_at IS NOT NULL OR key.is_replaced THEN",
        "WHEN key.is_replaced THEN",
        _AUTH,
    ),
    Mutant(
        "a-hold-is-forgotten",
        "sql/0009_rotation.sql",
        "        WHEN key.hold_until > moment THEN 'stream-stopped'\n",
        "",
        _story("a held key comes back"),
    ),
    Mutant(
        "a-disabled-broadcaster-is-let-in",
        "sql/0009_rotation.sql",
        "        WHEN key.broadcaster_disabled_at IS NOT NULL THEN 'broadcaster-disabled'\n",
        "",
        _AUTH,
    ),
    Mutant(
        "a-bound-key-goes-anywhere",
        "sql/0009_rotation.sql",
        "        WHEN key.path <> p_path THEN 'path-not-allowed'\n",
        "",
        _AUTH,
    ),
    Mutant(
        "a-replay-is-any-path-of-the-connection",
        "sql/0009_rotation.sql",
        "        IF rival.stream_key_id = key.id AND rival.node = p_node AND rival.path = p_path\n",
        "        IF rival.stream_key_id = key.id AND rival.node = p_node\n",
        _AUTH,
    ),
    Mutant(
        "a-lapsed-claim-stands-in-the-way",
        "sql/0009_rotation.sql",
        "              AND (rival.lease_expires_at <= moment OR (",
        "              AND (false OR (",
        _AUTH,
    ),
    Mutant(
        "who-takes-over-never-takes-over",
        "streamorch/look.py",
        '    if not rival.is_active or rival.takeover == "never":\n        return False\n    is_old',
        "    if not rival.is_active:\n        return False\n    is_old",
        ("tests/test_look.py", *_AUTH),
    ),
    Mutant(
        "in-use-is-said-without-a-look",
        "streamorch/blueprints/auth.py",
        "if rival is not None and not of.looks.gives_way(rival, deadline=deadline):",
        "if rival is not None:",
        _AUTH,
    ),
    Mutant(
        "the-first-growth-is-life",
        "streamorch/look.py",
        "            if first_growth is not None and now - first_growth >= _APART_SECONDS:\n",
        "            if True:\n",
        ("tests/test_look.py",),
    ),
    Mutant(
        "a-claim-is-made-without-a-connection",
        "streamorch/blueprints/auth.py",
        '    if question.id == "":\n',
        "    if False:\n",
        _AUTH,
    ),
    Mutant(
        "a-key-may-stand-in-the-path",
        "streamorch/blueprints/auth.py",
        "    if keys.has_form(question.path):\n        _refuse(",
        "    if False:\n        _refuse(",
        _AUTH,
    ),
    Mutant(
        "the-metrics-secret-opens-the-control-api",
        "streamorch/blueprints/auth.py",
        'is_scrape = question.action != "api" and settings',
        "is_scrape = settings",
        _AUTH,
    ),
    Mutant(
        "only-the-first-secret-counts",
        "streamorch/signing.py",
        "        found |= hmac.compare_digest(presented, secret.encode())\n",
        "        return hmac.compare_digest(presented, secret.encode())\n",
        ("tests/test_signing.py", "tests/blueprints/test_guard.py"),
    ),
    Mutant(
        "a-signature-holds-for-ever",
        "streamorch/signing.py",
        "    if abs(int(now) - seconds) > _MAX_DRIFT_SECONDS:\n",
        "    if False:\n",
        ("tests/test_signing.py", "tests/blueprints/test_guard.py"),
    ),
    # --- what hooks do ---
    Mutant(
        "a-hook-revives-what-has-ended",
        "sql/0003_media_server.sql",
        "    IF target.id IS NULL OR target.path <> p_path OR target.ended_at IS NOT NULL THEN\n        outcome := 'not-found';\n",
        "    IF target.id IS NULL OR target.path <> p_path THEN\n        outcome := 'not-found';\n",
        _HOOKS,
    ),
    Mutant(
        "not-ready-ends-whoever-is-on-the-path",
        "sql/0003_media_server.sql",
        "BEGIN\n    target := stream_of_connection_v1(p_node, p_source_id);\n    IF target.id IS NULL THEN\n        -- Its start may",
        "BEGIN\n    SELECT s.* INTO target FROM streams AS s WHERE s.node = p_node AND s.path = p_path"
        " AND s.ended_at IS NULL AND s.started_at IS NOT NULL;\n    IF target.id IS NULL THEN\n        -- Its start may",
        ("tests/blueprints/test_webhooks.py::test_a_late_not_ready_does_not_end_the_next_stream",),
    ),
    Mutant(
        "the-old-stream-ends-at-acceptance",
        "sql/0009_rotation.sql",
        "    outcome := 'claimed';\n",
        "    UPDATE streams AS s SET ended_at = moment, end_reason = 'superseded', replaced_by = stream_id\n"
        "    WHERE s.id = checked.replaces;\n    outcome := 'claimed';\n",
        _story("a newcomer is let in and never live"),
    ),
    Mutant(
        "an-early-end-is-forgotten",
        "sql/0003_media_server.sql",
        "               AND d.departed_at > clock_timestamp() - interval '60 seconds') THEN\n",
        "               AND false) THEN\n",
        _HOOKS,
    ),
    Mutant(
        "an-end-is-told-and-the-list-stays",
        "sql/0003_media_server.sql",
        "    IF FOUND THEN\n        PERFORM bump_live_list_v1();\n        outcome := 'ended';\n    ELSE\n        outcome := 'late';\n    END IF;\nEND\n$$;\n",
        "    outcome := CASE WHEN FOUND THEN 'ended' ELSE 'late' END;\nEND\n$$;\n",
        _story("the end is told in time"),
    ),
    Mutant(
        "a-hook-without-the-callback-secret-is-heard",
        "streamorch/blueprints/webhooks.py",
        "bp.before_request(first(require_media_server))\n",
        "",
        ("tests/blueprints/test_guard.py",),
    ),
    # --- who is cut off ---
    Mutant(
        "kicked-before-the-commit",
        "streamorch/blueprints/stream_keys.py",
        "    with service().database.connection(actor=actor()) as conn:\n"
        "        outcome = stream_keys.revoke(conn, wanted)\n"
        '    if outcome == "not-found":\n'
        '        raise Problem("not-found", "no such stream key")\n'
        "    service().kicker.cut_off(stream_key_id=wanted)\n",
        "    if kicked := service().kicker.cut_off(stream_key_id=wanted):\n"
        "        kicked.result()\n"
        "    with service().database.connection(actor=actor()) as conn:\n"
        "        outcome = stream_keys.revoke(conn, wanted)\n"
        '    if outcome == "not-found":\n'
        '        raise Problem("not-found", "no such stream key")\n',
        _story("a key is revoked while it is live"),
    ),
    Mutant(
        "a-kick-of-before-closes-who-was-let-in-again",
        "streamorch/repositories/streams.py",
        "              AND NOT EXISTS (SELECT 1 FROM streams AS o\n",
        "              AND EXISTS (SELECT 1 FROM streams AS o\n",
        _RECONCILER,
    ),
    Mutant(
        "the-404-of-one-list-is-gone",
        "streamorch/mediamtx.py",
        "            exists = True\n            if found is not None:\n                return _decoded(_connection, found)\n",
        "            return None if found is None else _decoded(_connection, found)\n",
        ("tests/test_mediamtx.py",),
    ),
    Mutant(
        "a-list-that-there-is-not-says-gone",
        "streamorch/mediamtx.py",
        "        if not exists:\n",
        "        if False:\n",
        ("tests/test_mediamtx.py",),
    ),
    Mutant(
        "a-kick-is-not-verified",
        "streamorch/kicks.py",
        "        if time.monotonic() > deadline:\n            return False\n",
        "        return True\n",
        ("tests/test_kicks.py",),
    ),
    Mutant(
        "a-live-rtsp-publisher-is-kicked",
        "streamorch/mediamtx.py",
        '        if protocol == "rtsp":\n            return self._close_rtsp(connection_id, path, seconds)\n',
        "",
        ("tests/test_mediamtx.py",),
    ),
    # --- what the reconciler concludes ---
    Mutant(
        "a-list-without-an-answer-is-empty",
        "streamorch/reconciler.py",
        "                    unknown.append(protocol)\n                    break\n",
        "                    found[name] = []\n",
        _story("a list fails while a claim waits"),
    ),
    Mutant(
        "missed-once-is-gone",
        "sql/0003_media_server.sql",
        "FILTER (WHERE j.is_late OR j.is_missing AND j.id = ANY (p_missing_before))",
        "FILTER (WHERE j.is_late OR j.is_missing)",
        _RECONCILER,
    ),
    Mutant(
        "a-stream-younger-than-the-snapshot-is-gone",
        "sql/0003_media_server.sql",
        "s.ended_at IS NULL AND s.started_at < p_snapshot_at\n",
        "s.ended_at IS NULL AND s.started_at IS NOT NULL\n",
        ("tests/repositories/test_reconciliation.py::test_what_began_after_the_snapshot_is_not_judged_by_it",),
    ),
    Mutant(
        "reopened-past-who-has-the-path",
        "sql/0003_media_server.sql",
        "            WHEN EXISTS (SELECT 1 FROM streams AS s\n                         WHERE s.ended_at IS NULL AND s.stream_key_id <> target.stream_key_id\n                           AND s.node = target.node AND s.path = target.path)\n                 OR NOT EXISTS",
        "            WHEN NOT EXISTS",
        _story("another key takes the path of a forgotten stream"),
    ),
    Mutant(
        "a-disabled-broadcaster-is-not-settled",
        "sql/0003_media_server.sql",
        "          AND (k.revoked_at IS NOT NULL OR k.expires_at <= moment OR k.disabled_at IS NOT NULL OR b.disabled_at IS NOT NULL));",
        "          AND (k.revoked_at IS NOT NULL OR k.expires_at <= moment OR k.disabled_at IS NOT NULL));",
        _story("a broadcaster is disabled by hand"),
    ),
    Mutant(
        "refused-once-is-lost",
        "sql/0003_media_server.sql",
        "p_state = 'refused' AND known.api_failures >= 2",
        "p_state = 'refused'",
        _RECONCILER,
    ),
    Mutant(
        "an-old-leader-goes-on-writing",
        "sql/0003_media_server.sql",
        "    WHERE l.name = 'reconciler' AND l.epoch = p_epoch AND l.expires_at > clock_timestamp()\n    FOR SHARE;",
        "    WHERE l.name = 'reconciler'\n    FOR SHARE;",
        ("tests/repositories/test_reconciliation.py", "tests/test_leader.py"),
    ),
    Mutant(
        "strangers-are-kicked-when-told-to-report",
        "streamorch/reconciler.py",
        '        if self._settings.unknown_publishers != "kick" or not newcomers:\n',
        "        if not newcomers:\n",
        ("tests/test_reconciler.py::test_a_newcomer_that_nobody_claimed_is_left_alone_unless_told_to_kick",),
    ),
    Mutant(
        "what-ended-on-purpose-is-reopened",
        "sql/0003_media_server.sql",
        "'server_restarted', 'never_started')\n    FROM unnest",
        "'server_restarted', 'never_started', 'stopped', 'superseded')\n    FROM unnest",
        _story("a stopped stream whose kick does nothing"),
    ),
    # --- what is shown ---
    Mutant(
        "the-list-of-before-is-served",
        "streamorch/live.py",
        "                if built is None or built.version != version:\n                    with",
        "                if built is None:\n                    with",
        ("tests/blueprints/test_streams.py",),
    ),
    Mutant(
        "a-stale-list-has-an-etag",
        "streamorch/live.py",
        "as_of=rfc3339(seen_at)), etag=None)",
        "as_of=rfc3339(seen_at)))",
        ("tests/blueprints/test_streams.py",),
    ),
    Mutant(
        "a-cursor-is-taken-with-other-filters",
        "streamorch/blueprints/__init__.py",
        "    if bound_to != _fingerprint(filters):\n",
        "    if False:\n",
        ("tests/blueprints/test_streams.py", "tests/blueprints/test_stream_keys.py"),
    ),
    # --- what is told to nobody ---
    Mutant(
        "keys-are-written-to-the-log",
        "streamorch/logs.py",
        "        return keys.redact(msgspec.json.encode(line, enc_hook=str).decode())\n",
        "        return msgspec.json.encode(line, enc_hook=str).decode()\n",
        ("tests/test_logs.py",),
    ),
    Mutant(
        "the-value-of-a-key-is-stored",
        "streamorch/keys.py",
        "    return value[-4:]\n",
        "    return value\n",
        ("tests/test_keys.py", "tests/blueprints/test_stream_keys.py"),
    ),
    # --- the database away ---
    Mutant(
        "a-frozen-database-is-waited-for",
        "streamorch/repositories/__init__.py",
        "return super().wait(gen, interval, timeout or self.statement_seconds)",
        "return super().wait(gen, interval, timeout)",
        ("tests/repositories/test_database.py",),
    ),
    Mutant(
        "everybody-queues-for-a-database-that-is-away",
        "streamorch/repositories/__init__.py",
        "        self._refuse_until = time.monotonic() + _BREAKER_SECONDS\n",
        "        self._refuse_until = 0.0\n",
        ("tests/repositories/test_database.py",),
    ),
    # --- what fails ---
    Mutant(
        "a-database-that-may-only-be-read-is-a-500",
        "streamorch/repositories/__init__.py",
        "except psycopg.errors.ReadOnlySqlTransaction as error:",
        "except psycopg.errors.DuplicateDatabase as error:",
        ("tests/faults/test_database.py::test_a_database_that_may_only_be_read",),
    ),
    Mutant(
        "a-session-with-a-standby-is-kept",
        "streamorch/repositories/__init__.py",
        "            self.pgconn.finish()\n            raise ReadOnly(",
        "            raise ReadOnly(",
        ("tests/faults/test_database.py::test_a_database_that_may_only_be_read",),
    ),
    Mutant(
        "sessions-that-died-are-given-out",
        "streamorch/repositories/__init__.py",
        "            if _is_alive(conn):",
        "            if True:",
        ("tests/faults/test_database.py::test_sessions_that_died_while_nobody_used_them_cost_nobody_his_answer",),
    ),
    Mutant(
        "a-claim-whose-session-died-is-not-asked-again",
        "streamorch/repositories/__init__.py",
        "if conn is None or not conn.closed or isinstance(error, Unavailable):",
        "if True:",
        ("tests/faults/test_database.py::test_a_claim_whose_session_is_terminated_is_asked_again_on_another",),
    ),
    Mutant(
        "the-database-url-is-logged",
        "streamorch/repositories/__init__.py",
        'extra={"reason": reason})',
        'extra={"reason": self._pool.conninfo})',
        ("tests/faults/test_database.py::test_a_password_that_is_no_longer_right",),
    ),
    Mutant(
        "an-outage-is-a-500",
        "streamorch/problems.py",
        "isinstance(error, psycopg.OperationalError)",
        "isinstance(error, psycopg.errors.LockNotAvailable)",
        (
            "tests/faults/test_database.py::test_a_backend_that_is_killed_in_a_claim_takes_all_sessions_with_it_and_all_come_back",
        ),
    ),
    Mutant(
        "a-lock-is-waited-for-as-long-as-it-takes",
        "sql/0009_rotation.sql",
        "        PERFORM set_config('lock_timeout', '300ms', true);\n        PERFORM 1 FROM stream_keys",
        "        PERFORM 1 FROM stream_keys",
        ("tests/repositories/test_streams.py::test_a_claim_waits_for_a_lock_no_longer_than_its_caller_can",),
    ),
    Mutant(
        "asking-again-is-another-claim",
        "sql/0009_rotation.sql",
        "outcome := 'replay';",
        "outcome := 'stream-key-in-use';",
        ("tests/faults/test_workers.py::test_workers_killed_in_the_middle_of_a_claim",),
    ),
    Mutant(
        "who-has-connected-is-reset-at-the-stop",
        "streamorch/worker.py",
        "        self._serve_until_others_do(now)\n",
        "",
        (
            "tests/test_worker.py::test_who_comes_when_the_last_worker_has_accepted_everybody_is_refused_and_not_cut_off",
        ),
    ),
    Mutant(
        "who-was-announced-to-the-dead-is-forgotten",
        "streamorch/worker.py",
        "            self._look_for_the_forgotten()\n",
        "",
        ("tests/test_worker.py::test_who_was_announced_to_a_worker_that_is_gone_is_served_by_another",),
    ),
    Mutant(
        "who-was-announced-at-the-end-is-forgotten",
        "streamorch/worker.py",
        "            while conn := self._accept(listener, server):\n                self._wait_for(conn)\n",
        "",
        ("tests/test_worker.py::test_who_was_announced_to_a_worker_that_ends_is_served_by_it",),
    ),
    Mutant(
        "a-signal-interrupts-anything",
        "streamorch/local.py",
        "if first and self._heeding:",
        "if first:",
        ("tests/test_run.py::test_a_signal_never_interrupts_the_look_after_a_child",),
    ),
    Mutant(
        "bodies-of-any-size-are-read",
        "streamorch/worker.py",
        "    if len(length[1]) > _DIGITS or int(length[1]) > MAX_BODY_BYTES:\n        return None",
        "    pass",
        ("tests/faults/test_clients.py::test_a_crowd_with_bodies_that_are_too_large",),
    ),
    Mutant(
        "a-dead-leader-leads-on",
        "streamorch/reconciler.py",
        "_LEASE_SECONDS = 4.0",
        "_LEASE_SECONDS = 40.0",
        ("tests/faults/test_workers.py::test_of_several_instances_one_is_killed",),
    ),
    Mutant(
        "a-wrong-setting-at-sighup-ends-the-service",
        "streamorch/in_force.py",
        "        if _settings is None:\n            raise\n",
        "        raise\n",
        ("tests/faults/test_workers.py::test_a_setting_that_is_wrong_at_sighup_leaves_those_from_before_in_force",),
    ),
    Mutant(
        "a-worker-reads-the-settings-by-itself",
        "streamorch/in_force.py",
        "return _settings or read(environ)",
        "return Settings.from_env(environ)",
        ("tests/faults/test_workers.py::test_a_setting_that_is_wrong_at_sighup_leaves_those_from_before_in_force",),
    ),
    Mutant(
        "a-dripping-control-api-is-waited-for",
        "streamorch/mediamtx.py",
        "if self._deadline is not None:",
        "if False:",
        ("tests/faults/test_media_server.py::test_a_control_api_that_fails[dripping]",),
    ),
    Mutant(
        "a-500-is-an-empty-list",
        "streamorch/mediamtx.py",
        'raise NoAnswer(f"status {reply.status_code}")',
        "return b'{\"items\":[]}'",
        ("tests/faults/test_media_server.py::test_a_control_api_that_fails[500]",),
    ),
    Mutant(
        "without-an-answer-everybody-is-gone",
        "streamorch/look.py",
        'return rival.is_active and rival.takeover != "never" and not _grew_lately(rival)',
        "return True",
        ("tests/faults/test_media_server.py::test_a_control_api_that_fails[500]",),
    ),
    Mutant(
        "a-signature-by-another-clock",
        "streamorch/blueprints/__init__.py",
        "now=time.time(),",
        "now=time.time() + 3600,",
        ("tests/faults/test_time.py::test_a_signature_is_judged_by_the_clock_of_the_process",),
    ),
    Mutant(
        "a-migration-keeps-everybody-waiting",
        "streamorch/repositories/migrate.py",
        "                conn.execute(\"SET LOCAL lock_timeout = '100ms'\")\n",
        "",
        ("tests/repositories/test_migrate.py::test_a_file_that_waits_for_a_table_keeps_nobody_from_it",),
    ),
    # --- who may call ---
    Mutant(
        "a-scope-is-not-asked-for",
        "streamorch/blueprints/__init__.py",
        "    if not caller.may(request.needs):\n",
        "    if False:\n",
        ("tests/blueprints/test_guard.py",),
    ),
    Mutant(
        "whoever-may-steer-reads-the-trail",
        "streamorch/blueprints/audit.py",
        ', asks=WhichChanges, scope="admin")',
        ", asks=WhichChanges)",
        ("tests/blueprints/test_guard.py",),
    ),
    Mutant(
        "a-revoked-client-calls-on",
        "streamorch/repositories/api_clients.py",
        "WHERE c.revoked_at IS NULL AND (c.expires_at",
        "WHERE (c.expires_at",
        ("tests/test_callers.py",),
    ),
    Mutant(
        "a-client-that-expires-is-remembered",
        "streamorch/callers.py",
        "if known is not None and now < known.until and now - known.seen_at < FRESH_SECONDS:",
        "if known is not None and now - known.seen_at < FRESH_SECONDS:",
        ("tests/test_callers.py",),
    ),
    Mutant(
        "a-client-is-looked-up-each-time",
        "streamorch/callers.py",
        "            self._known[by] = _Known(caller, now, until)\n",
        "",
        (
            "tests/test_callers.py",
            "tests/test_hot_path.py::test_a_client_that_polls_the_list_costs_what_the_api_secret_does",
        ),
    ),
    Mutant(
        "an-outage-remembers-a-client-for-ever",
        "streamorch/callers.py",
        "if known is None or now >= known.until or now - known.seen_at >= KEPT_SECONDS:",
        "if known is None:",
        ("tests/test_callers.py",),
    ),
    Mutant(
        "a-guess-is-asked-of-the-database",
        "streamorch/callers.py",
        "        if not keys.is_client_secret(secret):\n            return None\n",
        "",
        ("tests/test_callers.py",),
    ),
    Mutant(
        "a-client-may-be-called-api-secret",
        "streamorch/callers.py",
        'f"client:{found.name}"',
        "found.name",
        ("tests/test_callers.py",),
    ),
    Mutant(
        "the-note-of-a-use-waits-for-a-row",
        "streamorch/repositories/api_clients.py",
        "FOR UPDATE SKIP LOCKED",
        "FOR UPDATE",
        ("tests/test_callers.py",),
    ),
    Mutant(
        "a-client-s-secret-stands-in-the-trail",
        "sql/0008_api_clients.sql",
        "regexp_replace(changed.after::text, '(s[ck]_)",
        "regexp_replace(changed.after::text, '(sk_)",
        ("tests/blueprints/test_api_clients.py",),
    ),
    # --- what is too much, and what is told of it ---
    Mutant(
        "malformed-http-is-quoted",
        "streamorch/worker.py",
        'f"the {part} {reason}", status',
        'f"the {part} {reason}: {error}", status',
        ("tests/test_malformed.py",),
    ),
    Mutant(
        "a-broken-chunk-is-a-500",
        "streamorch/exchange.py",
        "raise BrokenBody from error",
        "raise",
        ("tests/test_malformed.py",),
    ),
    Mutant(
        "digits-of-other-scripts-are-a-uuid",
        "streamorch/blueprints/__init__.py",
        "if str(found) != text.lower():",
        "if len(text) != 36:",
        ("tests/test_limits.py::test_an_id_in_a_url",),
    ),
    Mutant(
        "numbers-of-any-size-are-stored",
        "streamorch/blueprints/__init__.py",
        "if value == 0 or _SMALL <= abs(value) <= _LARGE",
        "if value is not None",
        ("tests/test_limits.py::test_metadata",),
    ),
    Mutant(
        "the-wrong-member-is-not-named",
        "streamorch/blueprints/__init__.py",
        'field = next(filter(None, told_of.groups())) if told_of else "body"',
        'field = "body"',
        ("tests/test_limits.py::test_questions",),
    ),
    Mutant(
        "a-user-agent-brings-a-key-into-the-database",
        "streamorch/blueprints/auth.py",
        'keys.redact(question.userAgent.replace("\\x00", ""))[:512]',
        'question.userAgent.replace("\\x00", "")[:512]',
        ("tests/test_secrets.py",),
    ),
    Mutant(
        "a-secret-is-compared-as-text",
        "streamorch/blueprints/auth.py",
        "signing.matches(question.password, settings.mediamtx_api_passwords)",
        "question.password in settings.mediamtx_api_passwords",
        ("tests/test_secrets.py::test_secrets_are_compared_by_one_function_alone",),
    ),
    Mutant(
        "deep-json-of-a-media-server-ends-the-tick",
        "streamorch/mediamtx.py",
        "UnicodeDecodeError, RecursionError)",
        "UnicodeDecodeError)",
        ("tests/fuzz/test_media_server.py",),
    ),
    Mutant(
        "the-first-callback-secret-alone-is-taken",
        "streamorch/blueprints/__init__.py",
        "    if not signing.matches(given, secrets):\n",
        "    if not signing.matches(given, secrets[:1]):\n",
        ("tests/blueprints/test_guard.py",),
    ),
    Mutant(
        "a-list-without-a-secret-opens-the-callbacks",
        "streamorch/settings.py",
        "        if text and not values:\n",
        "        if False:\n",
        ("tests/test_settings.py",),
    ),
    Mutant(
        "an-older-callback-secret-is-no-news",
        "streamorch/doctor/hooks.py",
        "        found.append(warning(OLDER))\n",
        "        pass\n",
        ("tests/test_doctor.py",),
    ),
    Mutant(
        "an-older-callback-secret-is-in-a-span",
        "streamorch/tracing.py",
        "(settings.api_secrets, settings.callback_secrets, ",
        "(settings.api_secrets, settings.callback_secrets[:1], ",
        ("tests/test_tracing_running.py",),
    ),
    Mutant(
        "a-bad-setting-is-quoted",
        "streamorch/settings.py",
        'f"{name} must be a URL',
        'f"{value} {name} must be a URL',
        ("tests/test_secrets.py",),
    ),
    # --- what is let go of ---
    Mutant(
        "a-stream-that-is-to-be-closed-goes",
        "sql/0010_history.sql",
        "          AND (s.kick_requested_at IS NULL OR s.kicked_at IS NOT NULL)\n",
        "",
        ("tests/test_history.py::test_a_stream_whose_connection_is_still_to_be_closed_stays_until_it_is",),
    ),
    Mutant(
        "a-batch-is-filled-with-what-stays",
        "sql/0010_history.sql",
        "          AND (SELECT bool_or(r.ended_at IS NULL) FROM streams AS r WHERE r.replaces = s.id) IS NOT TRUE\n",
        "",
        ("tests/test_history.py::test_an_open_stream_keeps_the_one_it_refers_to",),
    ),
    Mutant(
        "when-a-key-was-last-used-is-forgotten",
        "sql/0010_history.sql",
        "    WHERE k.id = ANY (held);",
        "    WHERE false;",
        ("tests/test_history.py::test_when_a_key_was_last_used_is_known_afterwards",),
    ),
    Mutant(
        "retention-waits-for-who-holds-a-key",
        "sql/0010_history.sql",
        "ORDER BY k.id FOR NO KEY UPDATE SKIP LOCKED);",
        "ORDER BY k.id FOR NO KEY UPDATE);",
        ("tests/test_history.py::test_it_waits_for_nobody",),
    ),
    Mutant(
        "each-stream-that-goes-reads-all-others",
        "sql/0010_history.sql",
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS streams_by_replaces ON streams (replaces) WHERE replaces IS NOT NULL;\n",
        "",
        ("tests/test_history.py::test_a_batch_reads_no_table_from_end_to_end",),
    ),
    Mutant(
        "an-index-half-built-stays-so",
        "streamorch/repositories/migrate.py",
        "if conn.execute(_HALF_BUILT, [name]).fetchone():",
        "if False:",
        ("tests/repositories/test_migrate.py::test_an_index_that_was_left_half_built_is_built_anew",),
    ),
    # --- what is dead, and what is slow ---
    Mutant(
        "each-new-try-keeps-a-dead-stream-listed",
        "sql/0011_successors.sql",
        "AND (s.interrupted_at IS NULL OR n.claimed_at <= s.interrupted_at))",
        ")",
        ("tests/test_reconciler.py::test_an_encoder_that_tries_again_and_again_keeps_no_dead_stream_in_the_list",),
    ),
    Mutant(
        "an-end-that-nobody-told-is-not-noted",
        "streamorch/reconciler.py",
        "        if gone:\n            reconciliation.interrupt(",
        "        if False:\n            reconciliation.interrupt(",
        ("tests/test_reconciler.py::test_an_old_stream_is_listed_until_its_successor_is_live",),
    ),
    Mutant(
        "a-long-report-counts-as-an-outage",
        "streamorch/repositories/streams.py",
        "with bounded(conn), conn.cursor(",
        "with conn.cursor(",
        (
            "tests/repositories/test_streams.py::test_history_that_takes_too_long_is_given_up_by_the_server_and_is_no_outage",
        ),
    ),
)
MUTANTS = {mutant.name: mutant for mutant in _ALL}
