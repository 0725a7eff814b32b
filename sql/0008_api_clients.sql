-- Named callers of the API, each with a secret and a scope of its own, beside API_SECRET.
--
-- A release before this one knows none of it: to it such a secret is an unknown one.

-- Only the SHA-256 of a secret and its last four characters are kept, as of a stream key. (Of 256 random bits: no
-- slow hash is needed, and no comparison in constant time.)
CREATE TABLE api_clients (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    scope text NOT NULL,
    secret_hash bytea NOT NULL,
    hint text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    CONSTRAINT api_clients_hash_unique UNIQUE (secret_hash),
    CONSTRAINT api_clients_hash_length CHECK (octet_length(secret_hash) = 32),
    CONSTRAINT api_clients_hint_length CHECK (char_length(hint) <= 4),
    CONSTRAINT api_clients_name_length CHECK (char_length(name) BETWEEN 1 AND 255),
    CONSTRAINT api_clients_scope_known CHECK (scope IN ('read', 'operate', 'admin'))
) WITH (fillfactor = 80); -- use writes last_used_at: room for HOT updates

-- A name is free again when its client is revoked.
CREATE UNIQUE INDEX api_clients_one_of_a_name ON api_clients (name) WHERE revoked_at IS NULL;
-- GET /api-clients, newest first.
CREATE INDEX api_clients_by_created ON api_clients (created_at DESC, id DESC);

-- POST /api-clients. outcome: 'created', 'name-taken', 'conflict' (the id is taken).
CREATE FUNCTION create_api_client_v1(
    p_id uuid, p_name text, p_scope text, p_secret_hash bytea, p_hint text, p_expires_at timestamptz,
    OUT outcome text)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
BEGIN
    INSERT INTO api_clients (id, name, scope, secret_hash, hint, expires_at)
    VALUES (p_id, p_name, p_scope, p_secret_hash, p_hint, p_expires_at)
    ON CONFLICT DO NOTHING;
    outcome := CASE
        WHEN FOUND THEN 'created'
        WHEN EXISTS (SELECT 1 FROM api_clients AS c WHERE c.id = p_id) THEN 'conflict'
        ELSE 'name-taken'
    END;
END
$$;

-- PATCH /api-clients/{id}: p_changes holds name, scope, expires_at. outcome: 'updated', 'not-found', 'revoked',
-- 'name-taken'.
CREATE FUNCTION update_api_client_v1(p_id uuid, p_changes jsonb, OUT outcome text)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
DECLARE
    revoked timestamptz;
BEGIN
    SELECT c.revoked_at INTO revoked FROM api_clients AS c WHERE c.id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'not-found';
        RETURN;
    ELSIF revoked IS NOT NULL THEN
        outcome := 'revoked';
        RETURN;
    END IF;
    UPDATE api_clients AS c SET
        name = CASE WHEN p_changes ? 'name' THEN p_changes ->> 'name' ELSE c.name END,
        scope = CASE WHEN p_changes ? 'scope' THEN p_changes ->> 'scope' ELSE c.scope END,
        expires_at = CASE WHEN p_changes ? 'expires_at' THEN (p_changes ->> 'expires_at')::timestamptz ELSE c.expires_at END
    WHERE c.id = p_id;
    outcome := 'updated';
EXCEPTION WHEN unique_violation THEN
    -- Asked beforehand, two that take one name at once would both find it free.
    outcome := 'name-taken';
END
$$;

-- DELETE /api-clients/{id}. outcome: 'revoked', 'already', 'not-found'.
CREATE FUNCTION revoke_api_client_v1(p_id uuid, OUT outcome text)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
BEGIN
    UPDATE api_clients AS c SET revoked_at = clock_timestamp() WHERE c.id = p_id AND c.revoked_at IS NULL;
    outcome := CASE
        WHEN FOUND THEN 'revoked'
        WHEN EXISTS (SELECT 1 FROM api_clients AS c WHERE c.id = p_id) THEN 'already'
        ELSE 'not-found'
    END;
END
$$;

-- NOT VALID: each row that is there was checked against fewer kinds, and nobody waits while they are read once more.
ALTER TABLE audit
    DROP CONSTRAINT audit_kind_known,
    ADD CONSTRAINT audit_kind_known CHECK (kind IN ('broadcaster', 'stream_key', 'stream', 'api_client')) NOT VALID;

-- As it was, and of a client's secret it blots out what it blots out of a key.
CREATE OR REPLACE FUNCTION note_change_v1(p_kind text, p_action text, p_id uuid, p_before jsonb, p_after jsonb) RETURNS void
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
           regexp_replace(changed.before::text, '(s[ck]_)[A-Za-z0-9_-]{32,}', '\1[redacted]', 'g')::jsonb,
           regexp_replace(changed.after::text, '(s[ck]_)[A-Za-z0-9_-]{32,}', '\1[redacted]', 'g')::jsonb
    FROM (
        SELECT coalesce(jsonb_object_agg(d, p_before -> d) FILTER (WHERE p_before ? d), '{}') AS before,
               coalesce(jsonb_object_agg(d, p_after -> d) FILTER (WHERE p_after ? d), '{}') AS after
        FROM unnest(differs) AS d
    ) AS changed;
END
$$;

CREATE FUNCTION audited_v1(p_row api_clients) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'name', p_row.name, 'scope', p_row.scope, 'hint', p_row.hint,
        'expires_at', rfc3339_v1(p_row.expires_at), 'revoked_at', rfc3339_v1(p_row.revoked_at))
    WHERE p_row.id IS NOT NULL
$$;

CREATE FUNCTION audit_api_client_v1() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_change_v1(
        'api_client',
        CASE WHEN TG_OP = 'INSERT' THEN 'create' WHEN new.revoked_at IS NOT NULL AND old.revoked_at IS NULL THEN 'revoke' ELSE 'update' END,
        new.id, coalesce(CASE WHEN TG_OP = 'UPDATE' THEN audited_v1(old) END, '{}'), audited_v1(new));
    RETURN NULL;
END
$$;

-- (Not of last_used_at alone, which is nobody's change.)
CREATE TRIGGER audit AFTER INSERT OR UPDATE OF id, name, scope, secret_hash, hint, expires_at, revoked_at ON api_clients
    FOR EACH ROW EXECUTE FUNCTION audit_api_client_v1();
