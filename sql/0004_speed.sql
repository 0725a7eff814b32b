-- What a claim need not write or read, and a stream that was interrupted and goes on.

-- What POST /auth would answer to this claim, in the order of the checks; takes no lock
-- and writes nothing. outcome is 'claimable', 'replay', or the slug of the problem.
--
-- stream_id: the open stream of a replay. rival_id: the stream that is in the way.
-- replaces: the active stream that the claim will take over from. lapsed: pending streams
-- to end 'never_started' first.
--
-- The ORDER BY is for the planner. While hardly a stream was open at the last ANALYZE, any
-- partial index of open streams looks like a page to read from end to end, and a plan that
-- does so is kept while thousands come. Only the index that is meant gives this order.
CREATE OR REPLACE FUNCTION claim_check_v1(
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
        (SELECT s.id, s.stream_key_id, s.node, s.path, s.auth_id, s.started_at, s.lease_expires_at
         FROM streams AS s
         WHERE s.ended_at IS NULL AND s.stream_key_id = key.id
         ORDER BY (s.started_at IS NULL))
        UNION ALL
        (SELECT s.id, s.stream_key_id, s.node, s.path, s.auth_id, s.started_at, s.lease_expires_at
         FROM streams AS s
         WHERE s.ended_at IS NULL AND s.node = p_node AND s.path = p_path AND s.stream_key_id <> key.id
         ORDER BY (s.started_at IS NULL))
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

-- A claim writes its stream and nothing else: when a key was last used is told by its streams
-- (streams_by_key). That was a fifth of the work of a claim. last_used_at holds what was known
-- before; whoever deletes streams of a key writes the latest claimed_at there first.
--
-- POST /auth for action publish. outcome: 'claimed', 'replay', or the slug of the problem.
-- The first check takes no lock and writes no WAL, so refusals and replays cost a read; only
-- who is about to claim takes the locks and is checked again by statements that see what was
-- committed while it waited. p_judged_gone: the rival of an earlier 'stream-key-in-use' that
-- was since found stalled or gone.
CREATE OR REPLACE FUNCTION claim_v1(
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
    outcome := 'claimed';
END
$$;

-- Few if any: which streams were told to end while their successor is not live yet.
CREATE INDEX streams_interrupted ON streams (node) WHERE interrupted_at IS NOT NULL AND ended_at IS NULL;

-- Their end was told, and they are live all the same: the hook was late or doubled, or the same
-- connection published again.
CREATE FUNCTION resume_v1(p_epoch bigint, p_ids uuid[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT leads_v1(p_epoch) THEN
        RETURN;
    END IF;
    PERFORM set_config('lock_timeout', '300ms', true);
    WITH held AS (
        SELECT s.id FROM streams AS s
        WHERE s.id = ANY (p_ids) AND s.ended_at IS NULL AND s.interrupted_at IS NOT NULL
        ORDER BY s.id FOR UPDATE SKIP LOCKED
    )
    UPDATE streams AS s SET interrupted_at = NULL WHERE s.id IN (SELECT h.id FROM held AS h);
    IF FOUND THEN
        PERFORM bump_live_list_v1();
    END IF;
END
$$;

-- Each publish leaves two dead rows, and their entries in the indexes of open streams. After 60,000
-- publishes without a vacuum a claim took 1.6 times as long, and the live list 1.8 times; by the
-- defaults that is when a vacuum comes to a history of 600,000.
ALTER TABLE streams SET (
    autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_threshold = 500, autovacuum_analyze_scale_factor = 0.02);
