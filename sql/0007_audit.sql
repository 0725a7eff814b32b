-- Who changed what: a row for each change of a broadcaster, of a stream key, and of a stream by an
-- operator, written in the transaction of the change by triggers, which see every way to it: the API, the
-- commands, the release before, psql.
--
-- The statement that changes something says for whom by the setting streamorch.actor, which ends with its
-- transaction: {who, address, request_id}. Whatever says nothing is 'database'. An insert locks nothing that
-- anybody waits for, so the order of locks stays as it is; there is no foreign key for that reason.
-- Claims, starts and ends are nobody's change, and fire no trigger.

CREATE TABLE audit (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    who text NOT NULL,
    address text,
    request_id text,
    action text NOT NULL,
    kind text NOT NULL,
    subject_id uuid NOT NULL,
    before jsonb NOT NULL,
    after jsonb NOT NULL,
    CONSTRAINT audit_kind_known CHECK (kind IN ('broadcaster', 'stream_key', 'stream')),
    CONSTRAINT audit_action_known CHECK (action IN ('create', 'update', 'delete', 'revoke', 'stop'))
);
COMMENT ON COLUMN audit.before IS 'the members that changed, as they were; never the value of a key or its hash';

-- GET /audit, newest first; the same of one broadcaster, key or stream.
CREATE INDEX audit_by_time ON audit (changed_at DESC, id DESC);
CREATE INDEX audit_by_subject ON audit (subject_id, changed_at DESC, id DESC);

-- Writes what differs; nothing when an update changed nothing that is shown. What looks like a key in
-- somebody's metadata is blotted out.
CREATE FUNCTION note_change_v1(p_kind text, p_action text, p_id uuid, p_before jsonb, p_after jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    actor jsonb := nullif(current_setting('streamorch.actor', true), '');
    differs text[] := ARRAY(SELECT a.key FROM jsonb_each(p_after) AS a WHERE a.value IS DISTINCT FROM p_before -> a.key);
BEGIN
    IF p_action = 'update' AND differs = '{}' THEN
        RETURN;
    END IF;
    INSERT INTO audit (who, address, request_id, action, kind, subject_id, before, after)
    SELECT coalesce(actor ->> 'who', 'database'), actor ->> 'address', actor ->> 'request_id', p_action, p_kind, p_id,
           regexp_replace(changed.before::text, 'sk_[A-Za-z0-9_-]{32,}', 'sk_[redacted]', 'g')::jsonb,
           regexp_replace(changed.after::text, 'sk_[A-Za-z0-9_-]{32,}', 'sk_[redacted]', 'g')::jsonb
    FROM (
        SELECT coalesce(jsonb_object_agg(d, p_before -> d) FILTER (WHERE p_before ? d), '{}') AS before,
               coalesce(jsonb_object_agg(d, p_after -> d) FILTER (WHERE p_after ? d), '{}') AS after
        FROM unnest(differs) AS d
    ) AS changed;
END
$$;

-- Says for whom the statement around it changes something: SELECT change(...) FROM acting_v1(...).
CREATE FUNCTION acting_v1(p_actor text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('streamorch.actor', p_actor, true);
END
$$;

-- What may be told of each: its members as the API shows them, and no other column, whoever adds one.
CREATE FUNCTION audited_v1(p_row broadcasters) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'display_name', p_row.display_name, 'metadata', p_row.metadata, 'disabled', p_row.disabled_at IS NOT NULL)
    WHERE p_row.id IS NOT NULL
$$;

CREATE FUNCTION audited_v1(p_row stream_keys) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'broadcaster_id', p_row.broadcaster_id, 'hint', p_row.hint, 'label', p_row.label, 'path', p_row.path,
        'takeover', p_row.takeover, 'metadata', p_row.metadata, 'disabled', p_row.disabled_at IS NOT NULL,
        'expires_at', rfc3339_v1(p_row.expires_at), 'hold_until', rfc3339_v1(p_row.hold_until),
        'revoked_at', rfc3339_v1(p_row.revoked_at))
    WHERE p_row.id IS NOT NULL
$$;

CREATE FUNCTION audited_v1(p_row streams) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'metadata', p_row.metadata, 'recording_ref', p_row.recording_ref, 'end_reason', p_row.end_reason)
    WHERE p_row.id IS NOT NULL
$$;

CREATE FUNCTION audit_broadcaster_v1() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_change_v1(
        'broadcaster',
        CASE WHEN TG_OP = 'INSERT' THEN 'create' WHEN new.deleted_at IS NOT NULL AND old.deleted_at IS NULL THEN 'delete' ELSE 'update' END,
        new.id, coalesce(CASE WHEN TG_OP = 'UPDATE' THEN audited_v1(old) END, '{}'), audited_v1(new));
    RETURN NULL;
END
$$;

CREATE FUNCTION audit_stream_key_v1() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_change_v1(
        'stream_key',
        CASE WHEN TG_OP = 'INSERT' THEN 'create' WHEN new.revoked_at IS NOT NULL AND old.revoked_at IS NULL THEN 'revoke' ELSE 'update' END,
        new.id, coalesce(CASE WHEN TG_OP = 'UPDATE' THEN audited_v1(old) END, '{}'), audited_v1(new));
    RETURN NULL;
END
$$;

CREATE FUNCTION audit_stream_v1() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_change_v1(
        'stream', CASE WHEN new.end_reason = 'stopped' AND old.end_reason IS NULL THEN 'stop' ELSE 'update' END,
        new.id, audited_v1(old), audited_v1(new));
    RETURN NULL;
END
$$;

CREATE TRIGGER audit AFTER INSERT OR UPDATE ON broadcasters FOR EACH ROW EXECUTE FUNCTION audit_broadcaster_v1();
CREATE TRIGGER audit AFTER INSERT OR UPDATE ON stream_keys FOR EACH ROW EXECUTE FUNCTION audit_stream_key_v1();
-- UPDATE OF goes by what a statement sets: of these two nothing but update_stream_v1 does.
CREATE TRIGGER audit AFTER UPDATE OF metadata, recording_ref ON streams FOR EACH ROW EXECUTE FUNCTION audit_stream_v1();
CREATE TRIGGER audit_stop AFTER UPDATE OF end_reason ON streams FOR EACH ROW
    WHEN (new.end_reason = 'stopped' AND old.end_reason IS NULL) EXECUTE FUNCTION audit_stream_v1();

-- As trim_decisions_v1, by age alone.
CREATE FUNCTION trim_audit_v1(p_epoch bigint, p_days integer, p_batch bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    trimmed bigint;
BEGIN
    IF NOT leads_v1(p_epoch) THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('lock_timeout', '300ms', true), set_config('synchronous_commit', 'off', true);
    DELETE FROM audit AS a
    WHERE a.number = ANY (ARRAY(
        SELECT o.number
        FROM (SELECT c.number, c.changed_at FROM audit AS c ORDER BY c.number LIMIT p_batch) AS o
        WHERE o.changed_at < statement_timestamp() - make_interval(days => p_days)));
    GET DIAGNOSTICS trimmed = ROW_COUNT;
    RETURN trimmed;
END
$$;
