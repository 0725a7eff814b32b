-- How long the history is kept: ended streams that are older than HISTORY_DAYS go, if that is set.
--
-- Without these a DELETE reads the whole table twice for each row, to see that no stream refers to it. Few streams do.
-- (CREATE INDEX alone would keep claims waiting for as long as it takes; `migrate` builds these before the rest.)
CREATE INDEX CONCURRENTLY IF NOT EXISTS streams_by_replaces ON streams (replaces) WHERE replaces IS NOT NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS streams_by_replaced_by ON streams (replaced_by) WHERE replaced_by IS NOT NULL;

-- Deletes the p_batch streams that were claimed first of those that ended more than p_days ago; the leader does it.
-- Returns how many; NULL without the lead. Not those to which an open stream refers, whose connection is still to be
-- closed, or that somebody holds. The ended streams that refer to one that goes say so no longer. The newest of all
-- stays, so that a database of which nobody knows anything can be told from one where nobody published for long.
--
-- It keeps the LOCK ORDER of 0003 and waits for nobody. Whoever claims waits for it only with a key that has no stream
-- left: of that one it writes when it was last used (see claim_v1).
CREATE FUNCTION trim_history_v1(p_epoch bigint, p_days integer, p_batch bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    too_old timestamptz := clock_timestamp() - make_interval(days => p_days);
    newest uuid;
    going uuid[];
    bare uuid[];
    held uuid[];
    referring uuid[];
    forgetting uuid[];
    trimmed bigint;
BEGIN
    IF NOT leads_v1(p_epoch) THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('lock_timeout', '300ms', true), set_config('synchronous_commit', 'off', true);
    SELECT s.id INTO newest FROM streams AS s ORDER BY s.claimed_at DESC, s.id DESC LIMIT 1;
    -- (Aggregates, because the planner may make a join of NOT EXISTS that reads all open streams.)
    going := ARRAY(
        SELECT s.id
        FROM streams AS s
        WHERE s.claimed_at < too_old AND s.ended_at < too_old AND s.id <> newest
          AND (s.kick_requested_at IS NULL OR s.kicked_at IS NOT NULL)
          AND (SELECT bool_or(r.ended_at IS NULL) FROM streams AS r WHERE r.replaces = s.id) IS NOT TRUE
          AND (SELECT bool_or(r.ended_at IS NULL) FROM streams AS r WHERE r.replaced_by = s.id) IS NOT TRUE
        ORDER BY s.claimed_at, s.id
        LIMIT p_batch);

    -- Keys whose latest stream goes.
    bare := ARRAY(
        SELECT k.id
        FROM (SELECT DISTINCT s.stream_key_id AS id FROM streams AS s WHERE s.id = ANY (going)) AS k
        WHERE (SELECT s.id FROM streams AS s WHERE s.stream_key_id = k.id
               ORDER BY s.claimed_at DESC, s.id DESC LIMIT 1) = ANY (going));
    held := ARRAY(SELECT k.id FROM stream_keys AS k WHERE k.id = ANY (bare) ORDER BY k.id FOR NO KEY UPDATE SKIP LOCKED);
    going := ARRAY(
        SELECT s.id
        FROM streams AS s
        WHERE s.id = ANY (going) AND s.ended_at < too_old
          AND (s.stream_key_id = ANY (held) OR s.stream_key_id <> ALL (bare))
        ORDER BY s.id
        FOR UPDATE SKIP LOCKED);

    referring := ARRAY(
        SELECT r.id FROM streams AS r
        WHERE (r.replaces = ANY (going) OR r.replaced_by = ANY (going)) AND r.id <> ALL (going));
    forgetting := ARRAY(
        SELECT r.id FROM streams AS r
        WHERE r.id = ANY (referring) AND r.ended_at IS NOT NULL
        ORDER BY r.id
        FOR NO KEY UPDATE SKIP LOCKED);
    IF cardinality(forgetting) < cardinality(referring) THEN
        going := ARRAY(
            SELECT g FROM unnest(going) AS g
            EXCEPT
            SELECT unnest(ARRAY[r.replaces, r.replaced_by]) FROM streams AS r
            WHERE r.id = ANY (referring) AND r.id <> ALL (forgetting));
    END IF;

    UPDATE stream_keys AS k SET last_used_at = greatest(
        k.last_used_at, (SELECT max(s.claimed_at) FROM streams AS s WHERE s.stream_key_id = k.id))
    WHERE k.id = ANY (held);
    UPDATE streams AS r SET
        replaces = CASE WHEN r.replaces = ANY (going) THEN NULL ELSE r.replaces END,
        replaced_by = CASE WHEN r.replaced_by = ANY (going) THEN NULL ELSE r.replaced_by END
    WHERE (r.replaces = ANY (going) OR r.replaced_by = ANY (going)) AND r.id <> ALL (going);
    DELETE FROM streams AS s WHERE s.id = ANY (going);
    GET DIAGNOSTICS trimmed = ROW_COUNT;
    RETURN trimmed;
END
$$;
