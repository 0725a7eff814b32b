-- What a claim need not write, and a stream that was interrupted and goes on.

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
