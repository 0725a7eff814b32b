-- A stream key gets a new value, and the one before works on for a while: no encoder is locked out meanwhile.
--
-- Both are values of one key, so all that is said of a key holds for both: one stream, its path, its takeover, its
-- limits. A value that was replaced lets nobody in any more, and ends no stream: who came in with it streams on.
-- At most two work at a time. The functions replaced here keep their signatures and their outcomes, so that the
-- workers of the release before take both values as soon as these are applied.

ALTER TABLE stream_keys
    ADD COLUMN previous_key_hash bytea,
    ADD COLUMN previous_hint text,
    ADD COLUMN previous_works_until timestamptz,
    ADD COLUMN rotated_at timestamptz,
    ADD CONSTRAINT stream_keys_previous_hash_length CHECK (octet_length(previous_key_hash) = 32),
    ADD CONSTRAINT stream_keys_previous_hint_length CHECK (char_length(previous_hint) <= 4),
    ADD CONSTRAINT stream_keys_previous_is_another CHECK (previous_key_hash <> key_hash),
    ADD CONSTRAINT stream_keys_previous_is_whole CHECK (
        num_nulls(previous_key_hash, previous_hint, previous_works_until, rotated_at) IN (0, 4));
COMMENT ON COLUMN stream_keys.previous_key_hash IS
    'the value before the last rotation; kept when it works no more, to tell its holder why';

-- How a claim finds a key by the value before its last rotation.
CREATE UNIQUE INDEX stream_keys_by_previous_hash ON stream_keys (previous_key_hash) WHERE previous_key_hash IS NOT NULL;

ALTER TABLE streams ADD COLUMN hint text CONSTRAINT streams_hint_length CHECK (char_length(hint) <= 4);
COMMENT ON COLUMN streams.hint IS 'the last characters of the value that it was claimed with; NULL of a stream from before';

ALTER TABLE audit
    DROP CONSTRAINT audit_action_known,
    ADD CONSTRAINT audit_action_known CHECK (action IN ('create', 'update', 'delete', 'revoke', 'rotate', 'stop'));

-- POST /stream-keys/{id}/rotate. outcome: 'rotated', 'not-found', 'revoked'. What was replaced before is out at once.
CREATE FUNCTION rotate_stream_key_v1(
    p_id uuid, p_key_hash bytea, p_hint text, p_overlap_seconds integer, OUT outcome text)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
DECLARE
    before stream_keys;
    moment timestamptz;
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
    moment := clock_timestamp();
    UPDATE stream_keys AS k SET
        key_hash = p_key_hash,
        hint = p_hint,
        previous_key_hash = k.key_hash,
        previous_hint = k.hint,
        previous_works_until = moment + make_interval(secs => p_overlap_seconds),
        rotated_at = moment
    WHERE k.id = p_id;
    outcome := 'rotated';
END
$$;

-- As in 0004, and by either value of the key: one that works no more is 'stream-key-revoked'.
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
           b.disabled_at AS broadcaster_disabled_at, false AS is_replaced
    INTO key
    FROM stream_keys AS k
    JOIN broadcasters AS b ON b.id = k.broadcaster_id
    WHERE k.key_hash = p_key_hash;
    IF NOT FOUND THEN
        -- A statement of its own: with OR in the one above, every claim would look into both indexes.
        SELECT k.id, k.path, k.takeover, k.revoked_at, k.expires_at, k.disabled_at, k.hold_until,
               b.disabled_at AS broadcaster_disabled_at, k.previous_works_until <= moment AS is_replaced
        INTO key
        FROM stream_keys AS k
        JOIN broadcasters AS b ON b.id = k.broadcaster_id
        WHERE k.previous_key_hash = p_key_hash;
    END IF;

    key_id := key.id;
    outcome := CASE
        WHEN key.id IS NULL THEN 'invalid-stream-key'
        WHEN key.revoked_at IS NOT NULL OR key.is_replaced THEN 'stream-key-revoked'
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

-- As in 0004; the stream keeps which value it was claimed with.
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
        claimed_at, lease_expires_at, replaces, metadata, hint)
    SELECT gen_random_uuid(), k.id, p_node, p_path, p_protocol, p_connection_id, p_remote_address, p_user_agent,
           moment, moment + make_interval(secs => p_lease_seconds), checked.replaces, k.metadata,
           CASE WHEN k.key_hash = p_key_hash THEN k.hint ELSE k.previous_hint END
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

-- PATCH /stream-keys/{id}, as in 0002, and previous_works_until: sooner or later while the value before works,
-- NULL or the past for now. Further outcomes, of that member alone: 'overlap-over' (the value is out, and stays out),
-- 'overlap-too-long' (more than 30 days from now).
CREATE OR REPLACE FUNCTION update_stream_key_v1(p_id uuid, p_changes jsonb, OUT outcome text)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
DECLARE
    before stream_keys;
    wanted_path text := p_changes ->> 'path';
    moment timestamptz;
    wanted_end timestamptz;
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

    moment := clock_timestamp();
    wanted_end := before.previous_works_until;
    IF p_changes ? 'previous_works_until' THEN
        wanted_end := coalesce((p_changes ->> 'previous_works_until')::timestamptz, moment);
        IF before.previous_works_until > moment THEN
            wanted_end := greatest(wanted_end, moment);
            IF wanted_end > greatest(before.previous_works_until, moment + interval '30 days') THEN
                outcome := 'overlap-too-long';
                RETURN;
            END IF;
        ELSIF wanted_end > moment THEN
            outcome := 'overlap-over';
            RETURN;
        ELSE
            wanted_end := before.previous_works_until;
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
        previous_works_until = wanted_end,
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

-- What the audit trail tells of a key, as in 0007.
CREATE OR REPLACE FUNCTION audited_v1(p_row stream_keys) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'broadcaster_id', p_row.broadcaster_id, 'hint', p_row.hint, 'label', p_row.label, 'path', p_row.path,
        'takeover', p_row.takeover, 'metadata', p_row.metadata, 'disabled', p_row.disabled_at IS NOT NULL,
        'expires_at', rfc3339_v1(p_row.expires_at), 'hold_until', rfc3339_v1(p_row.hold_until),
        'revoked_at', rfc3339_v1(p_row.revoked_at), 'previous_hint', p_row.previous_hint,
        'previous_works_until', rfc3339_v1(p_row.previous_works_until), 'rotated_at', rfc3339_v1(p_row.rotated_at))
    WHERE p_row.id IS NOT NULL
$$;

CREATE OR REPLACE FUNCTION audit_stream_key_v1() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_change_v1(
        'stream_key',
        CASE
            WHEN TG_OP = 'INSERT' THEN 'create'
            WHEN new.revoked_at IS NOT NULL AND old.revoked_at IS NULL THEN 'revoke'
            WHEN new.key_hash <> old.key_hash THEN 'rotate'
            ELSE 'update'
        END,
        new.id, coalesce(CASE WHEN TG_OP = 'UPDATE' THEN audited_v1(old) END, '{}'), audited_v1(new));
    RETURN NULL;
END
$$;
