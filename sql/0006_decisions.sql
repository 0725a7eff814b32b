-- What POST /auth refused, so that one can look up why an encoder did not get in. What it granted is
-- told by the streams: a claim writes its stream and nothing else.
--
-- Rows come in batches from a thread of each worker, not from the request: a refusal itself still
-- writes nothing. They refer to keys and streams without a foreign key, whose check would lock the row
-- of a key that a claim waits for. Each row stands alone, so this takes part in no order of locks.

CREATE TABLE decisions (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    decided_at timestamptz NOT NULL,
    node text,
    action text,
    outcome text NOT NULL,
    stream_key_id uuid,
    hint text,
    rival_id uuid,
    path text,
    protocol text,
    remote_address text,
    user_agent text,
    connection_id text,
    left_out bigint NOT NULL,
    CONSTRAINT decisions_hint_length CHECK (char_length(hint) <= 4),
    CONSTRAINT decisions_left_out_is_count CHECK (left_out >= 0)
);
COMMENT ON COLUMN decisions.number IS 'the order of writing, by which the oldest go when there are too many';
COMMENT ON COLUMN decisions.rival_id IS 'the stream that was in the way';
COMMENT ON COLUMN decisions.left_out IS 'how many more of the same source, since the row before, have no row of their own';

-- GET /decisions, newest first; the same of one key, and of one stream: its connection, and who met it.
-- (By path or address it reads along the first: the table is bounded.)
CREATE INDEX decisions_by_time ON decisions (decided_at DESC, id DESC);
CREATE INDEX decisions_by_key ON decisions (stream_key_id, decided_at DESC, id DESC) WHERE stream_key_id IS NOT NULL;
CREATE INDEX decisions_by_connection ON decisions (connection_id);
CREATE INDEX decisions_by_rival ON decisions (rival_id) WHERE rival_id IS NOT NULL;

-- Writes a batch: [{age, node, action, outcome, ...}], age in seconds before now, by which the clocks of
-- the workers need not agree. Its commit is not waited for: a crash may forget some.
CREATE FUNCTION note_refusals_v1(p_refusals jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO decisions (decided_at, node, action, outcome, stream_key_id, hint, rival_id, path, protocol,
                           remote_address, user_agent, connection_id, left_out)
    SELECT statement_timestamp() - make_interval(secs => r.age), r.node, r.action, r.outcome, r.stream_key_id, r.hint,
           r.rival_id, r.path, r.protocol, r.remote_address, r.user_agent, r.connection_id, r.left_out
    FROM jsonb_to_recordset(p_refusals) AS r (
        age double precision, node text, action text, outcome text, stream_key_id uuid, hint text, rival_id uuid,
        path text, protocol text, remote_address text, user_agent text, connection_id text, left_out bigint);
END
$$;

-- Of the p_batch oldest rows, deletes those that are older than p_days, or more than p_rows behind the
-- newest; the leader does it. Returns how many; NULL without the lead.
CREATE FUNCTION trim_decisions_v1(p_epoch bigint, p_days integer, p_rows bigint, p_batch bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    newest bigint;
    trimmed bigint;
BEGIN
    IF NOT leads_v1(p_epoch) THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('lock_timeout', '300ms', true), set_config('synchronous_commit', 'off', true);
    SELECT max(d.number) INTO newest FROM decisions AS d;
    DELETE FROM decisions AS d
    WHERE d.number = ANY (ARRAY(
        SELECT o.number
        FROM (SELECT c.number, c.decided_at FROM decisions AS c ORDER BY c.number LIMIT p_batch) AS o
        WHERE o.number <= newest - p_rows OR o.decided_at < statement_timestamp() - make_interval(days => p_days)));
    GET DIAGNOSTICS trimmed = ROW_COUNT;
    RETURN trimmed;
END
$$;
