-- The functions that write. Each is one call, one round trip, in autocommit; none raises
-- for a refusal: an outcome is a returned value, because a ROLLBACK would throw away the
-- prepared statements of the connection.
--
-- LOCK ORDER, kept by every statement here and by whoever adds one:
--
--     1. the broadcaster row
--     2. key rows, by id       (SELECT ... FOR UPDATE, a statement of its own, so that
--                               the statements after it see what was committed meanwhile)
--     3. the path lock         (advisory, transaction level, by hash of the path)
--     4. stream rows, by id
--     5. the row of live_list, last
--
-- Whoever opens a stream, starts one, or binds a path holds 2 and 3. Whoever only ends
-- streams needs 4 and 5. The path lock leaves the node out, since a key is bound to its
-- path on every node. All functions are VOLATILE (a new snapshot for each statement) and
-- decide by clock_timestamp(): now() is older than a wait for a lock.
--
-- A changed signature is a new name (claim_v2); the old one goes a release later.

-- RFC 3339 in UTC with microseconds, whatever the time zone of the session.
CREATE FUNCTION rfc3339_v1(p_moment timestamptz) RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE AS $$
    SELECT to_char(p_moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;

CREATE FUNCTION lock_path_v1(p_path text) RETURNS void
LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('streamorch.path:' || p_path, 0))
$$;

CREATE FUNCTION bump_live_list_v1() RETURNS void
LANGUAGE sql AS $$
    UPDATE live_list SET version = version + 1, changed_at = clock_timestamp()
$$;

-- What POST /auth would answer to this claim, in the order of the checks; takes no lock
-- and writes nothing. outcome is 'claimable', 'replay', or the slug of the problem.
--
-- stream_id: the open stream of a replay. rival_id: the stream that is in the way.
-- replaces: the active stream that the claim will take over from. lapsed: pending streams
-- to end 'never_started' first.
CREATE FUNCTION claim_check_v1(
    p_key_hash bytea, p_node text, p_path text, p_connection_id text, p_judged_gone uuid,
    OUT outcome text, OUT key_id uuid, OUT stream_id uuid, OUT rival_id uuid,
    OUT replaces uuid, OUT lapsed uuid[])
LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    key record;
    rival record;
    pending_rival uuid;
    active_rival record;
BEGIN
    SELECT k.id, k.path, k.takeover, k.revoked_at, k.expires_at, k.disabled_at, k.hold_until,
           b.disabled_at AS broadcaster_disabled_at
    INTO key
    FROM stream_keys AS k
    JOIN broadcasters AS b ON b.id = k.broadcaster_id
    WHERE k.key_hash = p_key_hash;

    key_id := key.id;
    outcome := CASE
        WHEN key.id IS NULL THEN 'invalid-stream-key'
        WHEN key.revoked_at IS NOT NULL THEN 'stream-key-revoked'
        WHEN key.expires_at <= moment THEN 'stream-key-expired'
        WHEN key.disabled_at IS NOT NULL THEN 'stream-key-disabled'
        WHEN key.broadcaster_disabled_at IS NOT NULL THEN 'broadcaster-disabled'
        WHEN key.hold_until > moment THEN 'stream-stopped'
        WHEN key.path <> p_path THEN 'path-not-allowed'
    END;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;

    FOR rival IN
        SELECT s.id, s.stream_key_id, s.node, s.path, s.auth_id, s.started_at, s.lease_expires_at
        FROM streams AS s
        WHERE s.ended_at IS NULL AND s.stream_key_id = key.id
        UNION ALL
        SELECT s.id, s.stream_key_id, s.node, s.path, s.auth_id, s.started_at, s.lease_expires_at
        FROM streams AS s
        WHERE s.ended_at IS NULL AND s.node = p_node AND s.path = p_path AND s.stream_key_id <> key.id
    LOOP
        IF rival.stream_key_id = key.id AND rival.node = p_node AND rival.path = p_path
           AND rival.auth_id = p_connection_id THEN
            outcome := 'replay';
            stream_id := rival.id;
            RETURN;
        ELSIF rival.started_at IS NULL
              AND (rival.lease_expires_at <= moment OR (rival.stream_key_id = key.id AND rival.id = p_judged_gone)) THEN
            lapsed := lapsed || rival.id;
        ELSIF rival.stream_key_id <> key.id THEN
            outcome := 'path-in-use';
            rival_id := rival.id;
        ELSIF rival.started_at IS NULL THEN
            pending_rival := rival.id;
        ELSE
            active_rival := rival;
        END IF;
    END LOOP;

    -- Two keys bound to one path may both use it, in turn.
    IF key.path IS NULL AND EXISTS (
        SELECT 1
        FROM stream_keys AS k
        JOIN broadcasters AS b ON b.id = k.broadcaster_id
        WHERE k.path = p_path AND k.revoked_at IS NULL AND k.disabled_at IS NULL
          AND (k.expires_at IS NULL OR k.expires_at > moment) AND b.disabled_at IS NULL
    ) THEN
        outcome := 'path-in-use';
    END IF;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;

    IF pending_rival IS NOT NULL THEN
        outcome := 'stream-key-in-use';
        rival_id := pending_rival;
    ELSIF active_rival IS NULL THEN
        outcome := 'claimable';
    ELSIF active_rival.id = p_judged_gone
          OR key.takeover = 'always' AND (node_seen_v1(active_rival.node) OR (active_rival.node, active_rival.path) = (p_node, p_path))
          OR key.takeover = 'stalled' AND NOT node_seen_v1(active_rival.node) AND (active_rival.node, active_rival.path) = (p_node, p_path)
    THEN
        -- Without a Control API nobody can look at the old connection: on the same path the
        -- newest wins, which is MediaMTX's own rule (overridePublisher). Anything else would
        -- lock a key for ever after one lost hook.
        outcome := 'claimable';
        replaces := active_rival.id;
    ELSE
        outcome := 'stream-key-in-use';
        rival_id := active_rival.id;
    END IF;
END
$$;

-- Has the Control API of this node ever answered?
CREATE FUNCTION node_seen_v1(p_node text) RETURNS boolean
LANGUAGE sql AS $$
    SELECT EXISTS (SELECT 1 FROM nodes WHERE node = p_node AND api_seen_at IS NOT NULL)
$$;

-- POST /auth for action publish. outcome: 'claimed', 'replay', or the slug of the problem.
-- The first check takes no lock and writes no WAL, so refusals and replays cost a read; only
-- who is about to claim takes the locks and is checked again by statements that see what was
-- committed while it waited. p_judged_gone: the rival of an earlier 'stream-key-in-use' that
-- was since found stalled or gone.
CREATE FUNCTION claim_v1(
    p_key_hash bytea, p_node text, p_path text, p_connection_id text, p_protocol text,
    p_remote_address text, p_user_agent text, p_lease_seconds integer, p_judged_gone uuid,
    OUT outcome text, OUT key_id uuid, OUT stream_id uuid, OUT rival_id uuid)
LANGUAGE plpgsql AS $$
DECLARE
    checked record;
    moment timestamptz;
BEGIN
    SELECT * INTO checked FROM claim_check_v1(p_key_hash, p_node, p_path, p_connection_id, p_judged_gone);
    IF checked.outcome = 'claimable' THEN
        -- Not as a setting of the function, which every refusal would pay for.
        PERFORM set_config('lock_timeout', '300ms', true);
        PERFORM 1 FROM stream_keys AS k WHERE k.id = checked.key_id FOR UPDATE;
        PERFORM lock_path_v1(p_path);
        SELECT * INTO checked FROM claim_check_v1(p_key_hash, p_node, p_path, p_connection_id, p_judged_gone);
    END IF;
    outcome := checked.outcome;
    key_id := checked.key_id;
    stream_id := checked.stream_id;
    rival_id := checked.rival_id;
    IF outcome <> 'claimable' THEN
        RETURN;
    END IF;

    IF checked.lapsed IS NOT NULL THEN
        PERFORM 1 FROM streams AS s WHERE s.id = ANY (checked.lapsed) ORDER BY s.id FOR UPDATE;
        UPDATE streams AS s SET ended_at = clock_timestamp(), end_reason = 'never_started'
        WHERE s.id = ANY (checked.lapsed) AND s.ended_at IS NULL AND s.started_at IS NULL;
    END IF;

    moment := clock_timestamp();
    INSERT INTO streams AS s (
        id, stream_key_id, node, path, protocol, auth_id, remote_address, user_agent,
        claimed_at, lease_expires_at, replaces, metadata)
    SELECT gen_random_uuid(), k.id, p_node, p_path, p_protocol, p_connection_id, p_remote_address, p_user_agent,
           moment, moment + make_interval(secs => p_lease_seconds), checked.replaces, k.metadata
    FROM stream_keys AS k
    WHERE k.id = key_id
    ON CONFLICT DO NOTHING
    RETURNING s.id INTO stream_id;
    IF stream_id IS NULL THEN
        outcome := 'stream-key-in-use';
        RETURN;
    END IF;
    UPDATE stream_keys AS k SET last_used_at = moment WHERE k.id = key_id;
    outcome := 'claimed';
END
$$;

-- The key check alone, for a publish page or OPTIONS without a connection id: nothing is
-- claimed. outcome: 'valid' or the slug of the problem.
CREATE FUNCTION check_key_v1(p_key_hash bytea, p_node text, p_path text, OUT outcome text, OUT key_id uuid)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT c.outcome, c.key_id INTO outcome, key_id FROM claim_check_v1(p_key_hash, p_node, p_path, NULL, NULL) AS c;
    IF outcome IN ('claimable', 'stream-key-in-use') THEN
        outcome := 'valid';
    END IF;
END
$$;

-- Why a stream of this key may not go on, as an end_reason; NULL when it may.
CREATE FUNCTION key_refusal_v1(p_key_id uuid) RETURNS text
LANGUAGE sql AS $$
    SELECT CASE
        WHEN k.revoked_at IS NOT NULL THEN 'revoked'
        WHEN k.expires_at <= clock_timestamp() THEN 'expired'
        WHEN k.disabled_at IS NOT NULL OR b.disabled_at IS NOT NULL THEN 'disabled'
    END
    FROM stream_keys AS k
    JOIN broadcasters AS b ON b.id = k.broadcaster_id
    WHERE k.id = p_key_id
$$;

-- The stream of a connection on a node: the open one if there is one, else the latest.
CREATE FUNCTION stream_of_connection_v1(p_node text, p_source_id text) RETURNS streams
LANGUAGE sql AS $$
    SELECT found FROM (
        SELECT s AS found FROM streams AS s WHERE s.auth_id = p_source_id AND s.node = p_node
        UNION ALL
        SELECT s AS found FROM streams AS s WHERE s.source_id = p_source_id AND s.node = p_node
    ) AS candidates
    ORDER BY (found).ended_at IS NOT NULL, (found).claimed_at DESC
    LIMIT 1
$$;

-- A connection went live. outcome: 'active', 'replay' (it was active already), 'not-found'
-- (no claim, or it has ended: a hook never revives), or the end_reason of a claim whose key
-- lost its right meanwhile. Ends what the newcomer takes over from, in this transaction.
CREATE FUNCTION ready_v1(
    p_node text, p_path text, p_source_type text, p_source_id text,
    OUT outcome text, OUT stream_id uuid)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
DECLARE
    target streams;
    moment timestamptz;
BEGIN
    target := stream_of_connection_v1(p_node, p_source_id);
    IF target.id IS NULL AND p_source_type IN ('rtspSession', 'rtspsSession') THEN
        -- RTSP before v1.19.3: auth carried the id of the connection, the hook that of the session.
        -- (In the same statement once more by the session: a twin of this hook may just have set it.)
        SELECT s.* INTO target
        FROM streams AS s
        WHERE s.source_id = p_source_id AND s.node = p_node
           OR s.node = p_node AND s.path = p_path AND s.protocol = 'rtsp'
          AND s.started_at IS NULL AND s.ended_at IS NULL
        ORDER BY s.source_id IS NULL
        LIMIT 1;
    END IF;
    IF target.id IS NULL OR target.path <> p_path OR target.ended_at IS NOT NULL THEN
        outcome := 'not-found';
        RETURN;
    END IF;
    stream_id := target.id;
    IF target.started_at IS NOT NULL THEN
        outcome := 'replay';
        RETURN;
    END IF;

    PERFORM 1 FROM stream_keys AS k WHERE k.id = target.stream_key_id FOR UPDATE;
    PERFORM lock_path_v1(p_path);
    PERFORM 1
    FROM streams AS s
    WHERE s.ended_at IS NULL AND s.stream_key_id = target.stream_key_id
       OR s.ended_at IS NULL AND s.node = p_node AND s.path = p_path
    ORDER BY s.id
    FOR UPDATE;

    SELECT s.* INTO target FROM streams AS s WHERE s.id = stream_id;
    IF target.ended_at IS NOT NULL THEN
        outcome := 'not-found';
        RETURN;
    ELSIF target.started_at IS NOT NULL THEN
        outcome := 'replay';
        RETURN;
    END IF;

    moment := clock_timestamp();
    outcome := key_refusal_v1(target.stream_key_id);
    IF outcome IS NOT NULL THEN
        UPDATE streams AS s SET ended_at = moment, end_reason = outcome WHERE s.id = target.id;
        RETURN;
    END IF;

    UPDATE streams AS s SET ended_at = moment, end_reason = 'superseded', replaced_by = target.id
    WHERE s.ended_at IS NULL AND s.started_at IS NOT NULL
      AND (s.stream_key_id = target.stream_key_id OR (s.node = p_node AND s.path = p_path));
    -- A stream that the same publisher lost within the minute before this claim, or since: its watchers
    -- follow. (It has ended, and nobody who holds the row of an ended stream waits for another.)
    UPDATE streams AS s SET replaced_by = target.id
    WHERE s.id = (
        SELECT p.id
        FROM streams AS p
        WHERE p.stream_key_id = target.stream_key_id AND p.node = p_node AND p.path = p_path
          AND p.end_reason = 'disconnected' AND p.replaced_by IS NULL
          AND p.ended_at >= target.claimed_at - interval '60 seconds'
        ORDER BY p.ended_at DESC
        LIMIT 1);
    UPDATE streams AS s SET started_at = moment, source_type = p_source_type, source_id = p_source_id
    WHERE s.id = target.id;
    outcome := 'active';

    -- Its end was reported before its start.
    IF EXISTS (SELECT 1 FROM departures AS d WHERE d.node = p_node AND d.source_id = p_source_id
               AND d.departed_at > clock_timestamp() - interval '60 seconds') THEN
        UPDATE streams AS s SET ended_at = moment, end_reason = 'disconnected' WHERE s.id = target.id;
        outcome := 'not-found';
    END IF;
    PERFORM bump_live_list_v1();
END
$$;

-- A connection is no longer live. Ends the stream of that connection and no other.
-- outcome: 'ended', 'late' (it had ended), or 'unknown' (remembered for a minute).
CREATE FUNCTION not_ready_v1(
    p_node text, p_path text, p_source_type text, p_source_id text,
    OUT outcome text, OUT stream_id uuid)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
DECLARE
    target streams;
BEGIN
    target := stream_of_connection_v1(p_node, p_source_id);
    IF target.id IS NULL THEN
        -- Its start may be under way: ready_v1 holds the path lock until it commits.
        PERFORM lock_path_v1(p_path);
        target := stream_of_connection_v1(p_node, p_source_id);
    END IF;
    IF target.id IS NULL THEN
        DELETE FROM departures AS d WHERE d.departed_at < clock_timestamp() - interval '60 seconds';
        INSERT INTO departures AS d (node, source_id, departed_at)
        VALUES (p_node, p_source_id, clock_timestamp())
        ON CONFLICT (node, source_id) DO UPDATE SET departed_at = excluded.departed_at;
        outcome := 'unknown';
        RETURN;
    END IF;

    stream_id := target.id;
    IF target.ended_at IS NULL AND target.started_at IS NULL THEN
        -- It was live, or there would be no end: its start comes late, and what it took over from has ended.
        PERFORM ready_v1(p_node, target.path, p_source_type, p_source_id);
    END IF;
    UPDATE streams AS s SET ended_at = clock_timestamp(), end_reason = 'disconnected'
    WHERE s.id = target.id AND s.ended_at IS NULL AND s.started_at IS NOT NULL;
    IF FOUND THEN
        PERFORM bump_live_list_v1();
        outcome := 'ended';
    ELSE
        outcome := 'late';
    END IF;
END
$$;

-- A path is no longer live, by a hook that names no connection. Ends its active stream
-- unless that one started within p_grace_seconds: then the hook is most likely about the
-- publisher before it. outcome: 'ended' or 'late'.
CREATE FUNCTION not_ready_unnamed_v1(
    p_node text, p_path text, p_grace_seconds integer,
    OUT outcome text, OUT stream_id uuid)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
BEGIN
    UPDATE streams AS s SET ended_at = clock_timestamp(), end_reason = 'disconnected'
    WHERE s.node = p_node AND s.path = p_path AND s.ended_at IS NULL
      AND s.started_at < clock_timestamp() - make_interval(secs => p_grace_seconds)
    RETURNING s.id INTO stream_id;
    IF stream_id IS NULL THEN
        outcome := 'late';
    ELSE
        PERFORM bump_live_list_v1();
        outcome := 'ended';
    END IF;
END
$$;

-- Ends the open streams of these keys (their rows are locked by the caller); returns how many
-- of them were active, which is what the live list showed.
CREATE FUNCTION end_streams_of_keys_v1(p_key_ids uuid[], p_reason text) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    were_active integer;
BEGIN
    PERFORM 1 FROM streams AS s WHERE s.stream_key_id = ANY (p_key_ids) AND s.ended_at IS NULL ORDER BY s.id FOR UPDATE;
    WITH ended AS (
        UPDATE streams AS s SET ended_at = clock_timestamp(), end_reason = p_reason
        WHERE s.stream_key_id = ANY (p_key_ids) AND s.ended_at IS NULL
        RETURNING s.started_at
    )
    SELECT count(started_at) INTO were_active FROM ended;
    RETURN were_active;
END
$$;

-- DELETE /stream-keys/{id}. outcome: 'revoked', 'already', 'not-found'.
CREATE FUNCTION revoke_stream_key_v1(p_id uuid, OUT outcome text)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
DECLARE
    revoked timestamptz;
BEGIN
    SELECT k.revoked_at INTO revoked FROM stream_keys AS k WHERE k.id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'not-found';
    ELSIF revoked IS NOT NULL THEN
        outcome := 'already';
    ELSE
        UPDATE stream_keys AS k SET revoked_at = clock_timestamp() WHERE k.id = p_id;
        IF end_streams_of_keys_v1(ARRAY[p_id], 'revoked') > 0 THEN
            PERFORM bump_live_list_v1();
        END IF;
        outcome := 'revoked';
    END IF;
END
$$;

-- Is a stream of another key open on this path, on any node? (Lapsed claims do not count.)
CREATE FUNCTION path_taken_v1(p_path text, p_key_id uuid) RETURNS boolean
LANGUAGE sql AS $$
    SELECT EXISTS (
        SELECT 1 FROM streams AS s
        WHERE s.path = p_path AND s.ended_at IS NULL AND s.stream_key_id <> p_key_id
          AND (s.started_at IS NOT NULL OR s.lease_expires_at > clock_timestamp()))
$$;

-- POST /stream-keys. outcome: 'created', 'unknown-broadcaster', 'conflict' (the id is taken),
-- 'path-in-use' (another key's stream is open on the path that this one wants).
CREATE FUNCTION create_stream_key_v1(
    p_id uuid, p_broadcaster_id uuid, p_key_hash bytea, p_hint text, p_label text, p_path text,
    p_takeover text, p_expires_at timestamptz, p_disabled boolean, p_metadata jsonb,
    OUT outcome text)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
BEGIN
    -- FOR SHARE: a broadcaster that is being deleted revokes the keys that it sees.
    PERFORM 1 FROM broadcasters AS b WHERE b.id = p_broadcaster_id AND b.deleted_at IS NULL FOR SHARE;
    IF NOT FOUND THEN
        outcome := 'unknown-broadcaster';
        RETURN;
    END IF;
    IF p_path IS NOT NULL THEN
        PERFORM lock_path_v1(p_path);
        IF path_taken_v1(p_path, p_id) THEN
            outcome := 'path-in-use';
            RETURN;
        END IF;
    END IF;
    INSERT INTO stream_keys (id, broadcaster_id, key_hash, hint, label, path, takeover, expires_at, disabled_at, metadata)
    VALUES (p_id, p_broadcaster_id, p_key_hash, p_hint, p_label, p_path, p_takeover, p_expires_at,
            CASE WHEN p_disabled THEN clock_timestamp() END, p_metadata)
    ON CONFLICT DO NOTHING;
    outcome := CASE WHEN FOUND THEN 'created' ELSE 'conflict' END;
END
$$;

-- PATCH /stream-keys/{id}: p_changes holds the members to replace (label, path, takeover,
-- expires_at, disabled, hold_until, metadata). outcome: 'updated', 'not-found', 'revoked',
-- 'path-in-use', 'stream-key-in-use' (its own stream is open on another path).
CREATE FUNCTION update_stream_key_v1(p_id uuid, p_changes jsonb, OUT outcome text)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
DECLARE
    before stream_keys;
    wanted_path text := p_changes ->> 'path';
    reason text;
    shown boolean := false;
BEGIN
    SELECT k.* INTO before
    FROM stream_keys AS k
    WHERE k.id = p_id
      AND EXISTS (SELECT 1 FROM broadcasters AS b WHERE b.id = k.broadcaster_id AND b.deleted_at IS NULL)
    FOR UPDATE OF k;
    IF NOT FOUND THEN
        outcome := 'not-found';
        RETURN;
    ELSIF before.revoked_at IS NOT NULL THEN
        outcome := 'revoked';
        RETURN;
    END IF;

    IF wanted_path IS NOT NULL AND wanted_path IS DISTINCT FROM before.path THEN
        PERFORM lock_path_v1(wanted_path);
        IF path_taken_v1(wanted_path, p_id) THEN
            outcome := 'path-in-use';
            RETURN;
        ELSIF EXISTS (SELECT 1 FROM streams AS s WHERE s.stream_key_id = p_id AND s.ended_at IS NULL AND s.path <> wanted_path
                      AND (s.started_at IS NOT NULL OR s.lease_expires_at > clock_timestamp())) THEN
            outcome := 'stream-key-in-use';
            RETURN;
        END IF;
    END IF;

    UPDATE stream_keys AS k SET
        label = CASE WHEN p_changes ? 'label' THEN p_changes ->> 'label' ELSE k.label END,
        path = CASE WHEN p_changes ? 'path' THEN wanted_path ELSE k.path END,
        takeover = CASE WHEN p_changes ? 'takeover' THEN p_changes ->> 'takeover' ELSE k.takeover END,
        expires_at = CASE WHEN p_changes ? 'expires_at' THEN (p_changes ->> 'expires_at')::timestamptz ELSE k.expires_at END,
        hold_until = CASE WHEN p_changes ? 'hold_until' THEN (p_changes ->> 'hold_until')::timestamptz ELSE k.hold_until END,
        disabled_at = CASE
            WHEN NOT p_changes ? 'disabled' THEN k.disabled_at
            WHEN (p_changes ->> 'disabled')::boolean THEN coalesce(k.disabled_at, clock_timestamp())
        END,
        metadata = CASE WHEN p_changes ? 'metadata' THEN p_changes -> 'metadata' ELSE k.metadata END
    WHERE k.id = p_id;

    reason := key_refusal_v1(p_id);
    IF reason IS NOT NULL THEN
        shown := end_streams_of_keys_v1(ARRAY[p_id], reason) > 0;
    END IF;
    -- The live list shows the label of the key.
    IF shown OR (p_changes ? 'label' AND EXISTS (
        SELECT 1 FROM streams AS s WHERE s.stream_key_id = p_id AND s.ended_at IS NULL AND s.started_at IS NOT NULL)) THEN
        PERFORM bump_live_list_v1();
    END IF;
    outcome := 'updated';
END
$$;

-- PATCH /broadcasters/{id}: p_changes holds display_name, metadata, disabled. Disabling ends
-- every open stream of the broadcaster. outcome: 'updated', 'not-found'.
CREATE FUNCTION update_broadcaster_v1(p_id uuid, p_changes jsonb, OUT outcome text)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
DECLARE
    key_ids uuid[];
    shown boolean := false;
BEGIN
    UPDATE broadcasters AS b SET
        display_name = CASE WHEN p_changes ? 'display_name' THEN p_changes ->> 'display_name' ELSE b.display_name END,
        metadata = CASE WHEN p_changes ? 'metadata' THEN p_changes -> 'metadata' ELSE b.metadata END,
        disabled_at = CASE
            WHEN NOT p_changes ? 'disabled' THEN b.disabled_at
            WHEN (p_changes ->> 'disabled')::boolean THEN coalesce(b.disabled_at, clock_timestamp())
        END,
        updated_at = clock_timestamp()
    WHERE b.id = p_id AND b.deleted_at IS NULL;
    IF NOT FOUND THEN
        outcome := 'not-found';
        RETURN;
    END IF;
    IF (p_changes ->> 'disabled')::boolean THEN
        key_ids := lock_keys_of_broadcaster_v1(p_id);
        shown := end_streams_of_keys_v1(key_ids, 'disabled') > 0;
    END IF;
    -- The live list shows the name of the broadcaster.
    IF shown OR (p_changes ? 'display_name' AND EXISTS (
        SELECT 1
        FROM streams AS s
        JOIN stream_keys AS k ON k.id = s.stream_key_id
        WHERE k.broadcaster_id = p_id AND s.ended_at IS NULL AND s.started_at IS NOT NULL)) THEN
        PERFORM bump_live_list_v1();
    END IF;
    outcome := 'updated';
END
$$;

-- Locks the keys of a broadcaster, by id, and returns their ids.
CREATE FUNCTION lock_keys_of_broadcaster_v1(p_broadcaster_id uuid) RETURNS uuid[]
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM stream_keys AS k WHERE k.broadcaster_id = p_broadcaster_id ORDER BY k.id FOR UPDATE;
    RETURN ARRAY(SELECT k.id FROM stream_keys AS k WHERE k.broadcaster_id = p_broadcaster_id);
END
$$;

-- DELETE /broadcasters/{id}: soft. Its keys are revoked, its streams end; history stays.
-- outcome: 'deleted', 'already', 'not-found'.
CREATE FUNCTION delete_broadcaster_v1(p_id uuid, OUT outcome text)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
DECLARE
    deleted timestamptz;
    key_ids uuid[];
BEGIN
    SELECT b.deleted_at INTO deleted FROM broadcasters AS b WHERE b.id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'not-found';
        RETURN;
    ELSIF deleted IS NOT NULL THEN
        outcome := 'already';
        RETURN;
    END IF;
    UPDATE broadcasters AS b SET deleted_at = clock_timestamp(), updated_at = clock_timestamp() WHERE b.id = p_id;
    key_ids := lock_keys_of_broadcaster_v1(p_id);
    UPDATE stream_keys AS k SET revoked_at = clock_timestamp() WHERE k.id = ANY (key_ids) AND k.revoked_at IS NULL;
    IF end_streams_of_keys_v1(key_ids, 'revoked') > 0 THEN
        PERFORM bump_live_list_v1();
    END IF;
    outcome := 'deleted';
END
$$;

-- DELETE /streams/{id}: ends the stream and holds its key for p_hold_seconds, so that an
-- encoder that reconnects stays out. With a hold a newcomer of the key that is not live yet ends
-- too; without one it may go on. outcome: 'stopped', 'already', 'not-found'.
CREATE FUNCTION stop_stream_v1(p_id uuid, p_hold_seconds integer, OUT outcome text)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
DECLARE
    target streams;
    moment timestamptz;
    were_active integer;
BEGIN
    SELECT s.* INTO target FROM streams AS s WHERE s.id = p_id;
    IF NOT FOUND THEN
        outcome := 'not-found';
        RETURN;
    END IF;
    PERFORM 1 FROM stream_keys AS k WHERE k.id = target.stream_key_id FOR UPDATE;
    PERFORM 1 FROM streams AS s WHERE s.stream_key_id = target.stream_key_id AND s.ended_at IS NULL ORDER BY s.id FOR UPDATE;
    SELECT s.* INTO target FROM streams AS s WHERE s.id = p_id;
    IF target.ended_at IS NOT NULL THEN
        outcome := 'already';
        RETURN;
    END IF;
    moment := clock_timestamp();
    WITH ended AS (
        UPDATE streams AS s SET ended_at = moment, end_reason = 'stopped'
        WHERE s.ended_at IS NULL
          AND (s.id = p_id OR (p_hold_seconds > 0 AND s.stream_key_id = target.stream_key_id AND s.started_at IS NULL))
        RETURNING s.started_at
    )
    SELECT count(started_at) INTO were_active FROM ended;
    IF p_hold_seconds > 0 THEN
        UPDATE stream_keys AS k SET hold_until = greatest(k.hold_until, moment + make_interval(secs => p_hold_seconds))
        WHERE k.id = target.stream_key_id;
    END IF;
    IF were_active > 0 THEN
        PERFORM bump_live_list_v1();
    END IF;
    outcome := 'stopped';
END
$$;

-- PATCH /streams/{id}: p_changes holds metadata, recording_ref. outcome: 'updated', 'not-found'.
CREATE FUNCTION update_stream_v1(p_id uuid, p_changes jsonb, OUT outcome text)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
DECLARE
    changed streams;
BEGIN
    UPDATE streams AS s SET
        metadata = CASE WHEN p_changes ? 'metadata' THEN p_changes -> 'metadata' ELSE s.metadata END,
        recording_ref = CASE WHEN p_changes ? 'recording_ref' THEN p_changes ->> 'recording_ref' ELSE s.recording_ref END
    WHERE s.id = p_id
    RETURNING s.* INTO changed;
    outcome := CASE WHEN changed.id IS NULL THEN 'not-found' ELSE 'updated' END;
    IF p_changes <> '{}' AND changed.started_at IS NOT NULL AND changed.ended_at IS NULL THEN
        PERFORM bump_live_list_v1();
    END IF;
END
$$;
