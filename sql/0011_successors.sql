-- A dead stream whose encoder tries again and again, and never succeeds, leaves the live list.

-- Will a claim of the same key take this active stream's place? Once its end is known only a claim from before
-- counts: while its encoder came back every second and failed, each new claim kept the dead stream in the list.
CREATE OR REPLACE FUNCTION has_successor_v1(p_stream_id uuid, p_key_id uuid) RETURNS boolean
LANGUAGE sql AS $$
    SELECT EXISTS (
        SELECT 1
        FROM streams AS s
        JOIN streams AS n ON n.replaces = s.id
        WHERE s.id = p_stream_id
          AND n.stream_key_id = p_key_id AND n.ended_at IS NULL AND n.started_at IS NULL
          AND n.lease_expires_at > clock_timestamp()
          AND (s.interrupted_at IS NULL OR n.claimed_at <= s.interrupted_at))
$$;

-- These were live before the snapshot and stand in no list of it, and a successor is on its way: what not_ready_v1
-- writes when it is told. (The hook may be lost.)
CREATE FUNCTION interrupt_v1(p_epoch bigint, p_snapshot_at timestamptz, p_ids uuid[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT leads_v1(p_epoch) THEN
        RETURN;
    END IF;
    PERFORM set_config('lock_timeout', '300ms', true);
    WITH held AS (
        SELECT s.id FROM streams AS s
        WHERE s.id = ANY (p_ids) AND s.ended_at IS NULL AND s.started_at < p_snapshot_at AND s.interrupted_at IS NULL
        ORDER BY s.id FOR UPDATE SKIP LOCKED
    )
    UPDATE streams AS s SET interrupted_at = clock_timestamp() WHERE s.id IN (SELECT h.id FROM held AS h);
    IF FOUND THEN
        PERFORM bump_live_list_v1();
    END IF;
END
$$;
