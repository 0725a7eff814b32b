-- What the Control API of a media server tells, and what follows from it: the reconciler, its
-- leader, statistics, kicks. Functions of 0002 that keep their signature are replaced in place; the
-- release before this one calls them too, and may. (While both run, it refuses what it cannot look at.)
--
-- LOCK ORDER, as in 0002, with its two new ends:
--
--     0. the row of leaders          (whoever writes in the name of the reconciler)
--     1. the broadcaster row
--     2. key rows, by id
--     3. the path lock
--     4. stream rows, by id; then rows of stream_stats
--     5. the row of live_list
--     6. the row of nodes
--
-- The reconciler takes 2, 3 and 4 only where nobody else holds them (SKIP LOCKED, try): what it
-- cannot have now it decides at the next tick, and a forgotten lock elsewhere does not stop it.

-- Who reconciles. Each writing statement of the reconciler shares a lock on the row of its epoch,
-- so a process that was frozen, cut off or succeeded writes nothing more.
CREATE TABLE leaders (
    name text PRIMARY KEY,
    holder text NOT NULL,
    epoch bigint NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
INSERT INTO leaders (name, holder, epoch, expires_at) VALUES ('reconciler', '', 0, '-infinity');

ALTER TABLE nodes
    ADD COLUMN api_state text NOT NULL DEFAULT 'never',
    ADD COLUMN api_failing_since timestamptz,
    ADD COLUMN api_failures integer NOT NULL DEFAULT 0,
    ADD COLUMN version text,
    ADD COLUMN started_at timestamptz,
    ADD COLUMN started_seen_at timestamptz,
    ADD COLUMN last_tick_at timestamptz,
    ADD COLUMN last_hook_at timestamptz,
    ADD COLUMN unclaimed jsonb NOT NULL DEFAULT '[]',
    ADD CONSTRAINT nodes_api_state_known CHECK (api_state IN ('never', 'ok', 'refused', 'silent', 'unauthorized')),
    ADD CONSTRAINT nodes_unclaimed_is_list CHECK (jsonb_typeof(unclaimed) = 'array');
COMMENT ON COLUMN nodes.api_failing_since IS 'the first of the failed ticks in a row';
COMMENT ON COLUMN nodes.started_at IS 'as the server says; another value is another run of it, in which all connections are new';
COMMENT ON COLUMN nodes.started_seen_at IS 'when that run was first seen, by the clock of this database';
COMMENT ON COLUMN nodes.last_tick_at IS 'the snapshot of the last tick that saw everything';

-- A connection that must be closed: until the media server confirmed that it is gone.
ALTER TABLE streams
    ADD COLUMN kick_requested_at timestamptz,
    ADD COLUMN kicked_at timestamptz,
    ADD CONSTRAINT streams_kick_was_requested CHECK (kicked_at IS NULL OR kick_requested_at IS NOT NULL);
CREATE INDEX streams_to_kick ON streams (node, kick_requested_at) WHERE kick_requested_at IS NOT NULL AND kicked_at IS NULL;

-- Whose watchers follow when its key comes back: asked at each start.
CREATE INDEX streams_lost ON streams (stream_key_id, ended_at DESC) WHERE end_reason = 'disconnected' AND replaced_by IS NULL;

-- Viewers and bytes of live streams, written every tick; what stands here when a stream ends stays.
CREATE TABLE stream_stats (
    stream_id uuid PRIMARY KEY CONSTRAINT stream_stats_stream REFERENCES streams (id) ON DELETE CASCADE,
    viewers integer,
    media text,
    bytes bigint,
    bitrate bigint,
    tracks text,
    sampled_at timestamptz,
    moved_at timestamptz,
    CONSTRAINT stream_stats_media_known CHECK (media IN ('flowing', 'stalled'))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1);

-- A column of values, a line for each and an empty one for NULL: for ten thousand of them cheaper to
-- write, and to read, than an array.
CREATE FUNCTION lines_v1(p_text text) RETURNS text[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT string_to_array(p_text, E'\n', '')
$$;

-- --- the leader -------------------------------------------------------------------------------------------

-- Take or keep the lead for p_seconds. epoch is NULL when another leads. A lease that ran out
-- comes back with a new epoch: what was decided under the old one is void. p_force takes it from
-- whoever has it.
CREATE FUNCTION lead_v1(p_holder text, p_seconds double precision, p_force boolean, OUT epoch bigint, OUT moment timestamptz)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('lock_timeout', '300ms', true);
    moment := clock_timestamp();
    IF NOT p_force AND EXISTS (SELECT 1 FROM leaders AS l
                               WHERE l.name = 'reconciler' AND l.holder <> p_holder AND l.expires_at > moment) THEN
        RETURN;
    END IF;
    UPDATE leaders AS l SET
        epoch = l.epoch + CASE WHEN l.holder = p_holder AND l.expires_at > clock_timestamp() THEN 0 ELSE 1 END,
        holder = p_holder,
        expires_at = clock_timestamp() + make_interval(secs => p_seconds)
    WHERE l.name = 'reconciler' AND (p_force OR l.holder = p_holder OR l.expires_at <= clock_timestamp())
    RETURNING l.epoch INTO epoch;
    moment := clock_timestamp();
END
$$;

-- Give the lead away at once, so that the next one need not wait for the lease.
CREATE FUNCTION resign_v1(p_epoch bigint) RETURNS void
LANGUAGE sql AS $$
    UPDATE leaders SET expires_at = clock_timestamp() WHERE name = 'reconciler' AND epoch = p_epoch
$$;

-- The fence: does this epoch still lead? If so nobody takes over before this transaction ends.
CREATE FUNCTION leads_v1(p_epoch bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM leaders AS l
    WHERE l.name = 'reconciler' AND l.epoch = p_epoch AND l.expires_at > clock_timestamp()
    FOR SHARE;
    RETURN FOUND;
END
$$;

-- --- what the reconciler does -----------------------------------------------------------------------------

-- What time alone decides, on every node, whether its media server answers or not: open streams
-- of keys that lost their right (an expiry is nobody's statement), interrupted streams whose
-- successor will not come, and claims whose time is over for a minute, which nobody saw live.
-- changes: [{what, stream_id, path}], at most 200; NULL without the lead.
CREATE FUNCTION settle_v1(p_epoch bigint, OUT changes jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    unrightful uuid[];
    orphaned uuid[];
    lapsed uuid[];
    locked uuid[];
    were_active integer;
BEGIN
    IF NOT leads_v1(p_epoch) THEN
        RETURN;
    END IF;
    PERFORM set_config('lock_timeout', '300ms', true);
    unrightful := ARRAY(
        SELECT s.id
        FROM streams AS s
        JOIN stream_keys AS k ON k.id = s.stream_key_id
        JOIN broadcasters AS b ON b.id = k.broadcaster_id
        WHERE s.ended_at IS NULL
          AND (k.revoked_at IS NOT NULL OR k.expires_at <= moment OR k.disabled_at IS NOT NULL OR b.disabled_at IS NOT NULL));
    orphaned := ARRAY(
        SELECT s.id
        FROM streams AS s
        WHERE s.ended_at IS NULL AND s.started_at IS NOT NULL AND s.interrupted_at IS NOT NULL
          AND NOT has_successor_v1(s.id, s.stream_key_id));
    lapsed := ARRAY(
        SELECT s.id
        FROM streams AS s
        WHERE s.ended_at IS NULL AND s.started_at IS NULL AND s.lease_expires_at < moment - interval '60 seconds');
    locked := ARRAY(
        SELECT s.id FROM streams AS s
        WHERE s.id = ANY (unrightful || orphaned || lapsed) AND s.ended_at IS NULL
        ORDER BY s.id FOR UPDATE SKIP LOCKED
        LIMIT 200);
    WITH ended AS (
        UPDATE streams AS s SET
            ended_at = coalesce(CASE WHEN s.id = ANY (orphaned) THEN s.interrupted_at END, moment),
            end_reason = coalesce(
                CASE WHEN s.id = ANY (unrightful) THEN key_refusal_v1(s.stream_key_id) END,
                CASE WHEN s.started_at IS NULL THEN 'never_started' ELSE 'disconnected' END),
            kick_requested_at = CASE WHEN s.id = ANY (unrightful) THEN moment END
        WHERE s.id = ANY (locked)
        RETURNING s.id, s.path, s.end_reason, s.started_at
    )
    SELECT count(e.started_at),
           coalesce((jsonb_agg(jsonb_build_object('what', e.end_reason, 'stream_id', e.id, 'path', e.path))), '[]')
    INTO were_active, changes
    FROM ended AS e;
    IF were_active > 0 THEN
        PERFORM bump_live_list_v1();
    END IF;
END
$$;

-- Will a claim of the same key take this active stream's place?
CREATE FUNCTION has_successor_v1(p_stream_id uuid, p_key_id uuid) RETURNS boolean
LANGUAGE sql AS $$
    SELECT EXISTS (
        SELECT 1 FROM streams AS n
        WHERE n.stream_key_id = p_key_id AND n.ended_at IS NULL AND n.started_at IS NULL
          AND n.replaces = p_stream_id AND n.lease_expires_at > clock_timestamp())
$$;

-- Statistics of the streams that publish on these connections. p_bytes is what came in over each
-- connection, NULL when its list did not answer; p_tracks is JSON, NULL when it has not changed.
-- Media is stalled when nothing came in for 1.5 s. The live list's version rises when viewers or media
-- differ. Its commit is not waited for: the next tick brings it again. unwritten: those whose stream
-- somebody else holds.
CREATE FUNCTION observe_v1(
    p_epoch bigint, p_node text, p_sampled_at timestamptz,
    p_source_ids text[], p_viewers integer[], p_bytes bigint[], p_tracks text[], OUT unwritten text[])
LANGUAGE plpgsql
-- The estimate for an array that is a parameter is ten rows, whatever it holds.
SET enable_nestloop = off AS $$
DECLARE
    open uuid[];
    fresh uuid[];
    is_new boolean;
BEGIN
    IF NOT leads_v1(p_epoch) THEN
        RETURN;
    END IF;
    PERFORM set_config('lock_timeout', '300ms', true), set_config('synchronous_commit', 'off', true);
    open := ARRAY(
        SELECT s.id FROM streams AS s WHERE s.node = p_node AND s.ended_at IS NULL AND s.started_at IS NOT NULL);
    fresh := ARRAY(
        SELECT u FROM unnest(open) AS u EXCEPT SELECT t.stream_id FROM stream_stats AS t WHERE t.stream_id = ANY (open));
    -- The foreign key of a first row would wait for whoever holds the stream.
    fresh := ARRAY(SELECT s.id FROM streams AS s WHERE s.id = ANY (fresh) FOR KEY SHARE SKIP LOCKED);
    WITH seen AS (
        SELECT s.id, u.source_id, f.id IS NOT NULL OR o.stream_id IS NOT NULL AS is_written, u.viewers, u.bytes, u.tracks,
               o.viewers AS viewers_before, o.media AS media_before, o.bytes AS bytes_before,
               o.bitrate AS bitrate_before, o.sampled_at AS sampled_before, o.moved_at AS moved_before
        FROM unnest(p_source_ids, p_viewers, p_bytes, p_tracks) AS u (source_id, viewers, bytes, tracks)
        JOIN (SELECT a.id, a.source_id FROM streams AS a WHERE a.id = ANY (open) AND a.ended_at IS NULL) AS s
          ON s.source_id = u.source_id
        LEFT JOIN (SELECT t.* FROM stream_stats AS t WHERE t.stream_id = ANY (open)) AS o ON o.stream_id = s.id
        LEFT JOIN unnest(fresh) AS f (id) ON f.id = s.id
    ), judged AS (
        SELECT *,
               CASE
                   WHEN bytes IS NULL THEN moved_before
                   WHEN bytes_before IS NULL OR bytes > bytes_before THEN p_sampled_at
                   ELSE moved_before
               END AS moved_at
        FROM seen
    ), measured AS (
        SELECT *,
               CASE
                   WHEN bytes IS NULL THEN media_before
                   WHEN moved_at = p_sampled_at THEN 'flowing'
                   WHEN p_sampled_at - moved_at >= interval '1.5 seconds' THEN 'stalled'
                   ELSE media_before
               END AS media
        FROM judged
    ), written AS (
        INSERT INTO stream_stats AS t (stream_id, viewers, media, bytes, bitrate, tracks, sampled_at, moved_at)
        SELECT m.id, m.viewers, m.media, coalesce(m.bytes, m.bytes_before),
               CASE
                   WHEN m.bytes IS NULL THEN m.bitrate_before
                   WHEN p_sampled_at - m.sampled_before >= interval '0.1 seconds'
                   THEN least(greatest(0, (m.bytes - m.bytes_before) * 8.0 / extract(epoch FROM p_sampled_at - m.sampled_before)),
                              9223372036854775807)::bigint
               END,
               m.tracks, CASE WHEN m.bytes IS NULL THEN m.sampled_before ELSE p_sampled_at END, m.moved_at
        FROM measured AS m
        WHERE m.is_written
        ON CONFLICT (stream_id) DO UPDATE SET
            viewers = excluded.viewers, media = excluded.media, bytes = excluded.bytes, bitrate = excluded.bitrate,
            tracks = coalesce(excluded.tracks, t.tracks), sampled_at = excluded.sampled_at, moved_at = excluded.moved_at
    )
    SELECT bool_or(m.viewers IS DISTINCT FROM m.viewers_before OR m.media IS DISTINCT FROM m.media_before)
               FILTER (WHERE m.is_written),
           array_agg(m.source_id) FILTER (WHERE NOT m.is_written)
    INTO is_new, unwritten
    FROM measured AS m;
    -- Listed, but on no live path: it waits for its successor, or is about to end.
    UPDATE stream_stats AS t SET viewers = 0, media = 'stalled', bitrate = 0
    FROM streams AS s
    WHERE t.stream_id = ANY (open) AND s.id = ANY (open) AND s.id = t.stream_id
      AND (t.viewers <> 0 OR t.media <> 'stalled')
      AND NOT EXISTS (SELECT 1 FROM unnest(p_source_ids) AS u (source_id) WHERE u.source_id = s.source_id);
    IF is_new OR FOUND THEN
        PERFORM bump_live_list_v1();
    END IF;
END
$$;

-- One snapshot of a node against its open streams: set-based, only starts and ends.
--
-- p_snapshot_at: the clock of this database before the lists were asked for. p_present: every id in
-- any list, once; p_known: protocols whose lists have answered, all of them. p_live_*: the publishers of
-- live paths. p_live_auth_ids: the id that auth named them by (RTSP before v1.19.3: the connection's),
-- NULL when the server does not tell. p_missing_before: the pending streams that the snapshot before
-- did not have. p_restarted: the server is another run of itself.
--
-- changes: [{what, stream_id, path}], at most 200, what is 'active' or an end_reason; NULL without the
-- lead. missing: for the next snapshot. strangers: live ids that are no open stream's, at most 1000
-- of stranger_count. more: starts
-- were left for another call, since each takes a lock of a table of fixed size.
CREATE FUNCTION reconcile_v1(
    p_epoch bigint, p_node text, p_snapshot_at timestamptz, p_present text[], p_known text[],
    p_live_ids text[], p_live_auth_ids text[], p_live_paths text[], p_live_types text[],
    p_missing_before uuid[], p_restarted boolean,
    OUT changes jsonb, OUT change_count integer, OUT missing uuid[],
    OUT strangers text[], OUT stranger_count integer, OUT more boolean)
LANGUAGE plpgsql
-- The estimate for an array that is a parameter is ten rows, whatever it holds. So lists are joined by
-- hash; and rows that are few are reached by `id = ANY (...)`, never past the streams of all history.
SET enable_nestloop = off AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    wanted uuid[];
    wanted_keys uuid[];
    wanted_paths text[];
    related uuid[];
    locked uuid[];
    startable uuid[];
    old_ids uuid[];
    new_ids uuid[];
    late uuid[];
    gone uuid[];
    started jsonb := '[]';
    superseded jsonb := '[]';
    failed jsonb := '[]';
    ended jsonb := '[]';
BEGIN
    IF NOT leads_v1(p_epoch) THEN
        RETURN;
    END IF;
    PERFORM set_config('lock_timeout', '300ms', true);

    -- Claims that are live: their hook was lost, or is on its way.
    SELECT array_agg(p.id), array_agg(DISTINCT p.stream_key_id), array_agg(DISTINCT p.path)
    INTO wanted, wanted_keys, wanted_paths
    FROM (
        SELECT p.id, p.stream_key_id, p.path
        FROM streams AS p
        JOIN unnest(p_live_ids, p_live_auth_ids, p_live_paths, p_live_types) AS l (id, auth_id, path, type)
          ON l.path = p.path
        WHERE p.node = p_node AND p.ended_at IS NULL AND p.started_at IS NULL
          AND (p.auth_id IN (l.auth_id, l.id)
               OR l.auth_id IS NULL AND p.protocol = 'rtsp' AND l.type IN ('rtspSession', 'rtspsSession')
                  AND p.claimed_at < p_snapshot_at
                  AND NOT EXISTS (SELECT 1 FROM streams AS o WHERE o.node = p_node AND o.source_id = l.id))
        LIMIT 1000
    ) AS p;
    more := coalesce(cardinality(wanted), 0) = 1000;
    IF wanted IS NOT NULL THEN
        wanted_keys := ARRAY(
            SELECT k.id FROM stream_keys AS k WHERE k.id = ANY (wanted_keys) ORDER BY k.id FOR UPDATE SKIP LOCKED);
        wanted_paths := ARRAY(
            SELECT w FROM unnest(wanted_paths) AS w
            WHERE pg_try_advisory_xact_lock(hashtextextended('streamorch.path:' || w, 0)));
        related := ARRAY(
            SELECT s.id FROM streams AS s WHERE s.ended_at IS NULL AND s.stream_key_id = ANY (wanted_keys)
            UNION
            SELECT s.id FROM streams AS s WHERE s.ended_at IS NULL AND s.node = p_node AND s.path = ANY (wanted_paths));
        locked := ARRAY(
            SELECT s.id FROM streams AS s
            WHERE s.id = ANY (related) AND s.ended_at IS NULL
            ORDER BY s.id FOR UPDATE SKIP LOCKED);
        -- Those of which everything could be had: key, path, and each open stream of either. (A key that
        -- has no right any more is the business of settle_v1.)
        WITH held AS (
            SELECT u AS id FROM unnest(locked) AS u
        ), open AS (
            SELECT o.id, o.stream_key_id, o.path, o.started_at FROM streams AS o
            WHERE o.id = ANY (related) AND o.ended_at IS NULL
        ), beyond AS (
            SELECT o.stream_key_id, o.path FROM open AS o WHERE NOT EXISTS (SELECT 1 FROM held AS h WHERE h.id = o.id)
        )
        SELECT array_agg(o.id) INTO startable
        FROM open AS o
        JOIN (SELECT u AS id FROM unnest(wanted) AS u) AS w ON w.id = o.id
        JOIN held AS h ON h.id = o.id
        JOIN (SELECT u AS id FROM unnest(wanted_keys) AS u) AS had_key ON had_key.id = o.stream_key_id
        JOIN (SELECT u AS path FROM unnest(wanted_paths) AS u) AS had_path ON had_path.path = o.path
        JOIN stream_keys AS k ON k.id = o.stream_key_id AND k.id = ANY (wanted_keys)
        JOIN broadcasters AS b ON b.id = k.broadcaster_id
        WHERE o.started_at IS NULL AND k.revoked_at IS NULL AND k.disabled_at IS NULL AND b.disabled_at IS NULL
          AND (k.expires_at IS NULL OR k.expires_at > moment)
          AND NOT EXISTS (SELECT 1 FROM beyond AS x WHERE x.stream_key_id = o.stream_key_id)
          AND NOT EXISTS (SELECT 1 FROM beyond AS x WHERE x.path = o.path);
    END IF;
    IF startable IS NOT NULL THEN
        WITH open AS (
            SELECT o.id, o.stream_key_id, o.node, o.path, o.started_at FROM streams AS o WHERE o.id = ANY (locked)
        )
        SELECT array_agg(pair.old_id), array_agg(pair.new_id) INTO old_ids, new_ids
        FROM (
            SELECT o.id AS old_id, n.id AS new_id
            FROM open AS n
            JOIN open AS o ON o.stream_key_id = n.stream_key_id
            WHERE n.id = ANY (startable) AND o.started_at IS NOT NULL
            UNION
            SELECT o.id, n.id
            FROM open AS n
            JOIN open AS o ON o.node = n.node AND o.path = n.path
            WHERE n.id = ANY (startable) AND o.started_at IS NOT NULL
        ) AS pair;
        WITH over AS (
            UPDATE streams AS s SET
                ended_at = moment, end_reason = 'superseded', replaced_by = n.id,
                kick_requested_at = CASE WHEN (s.node, s.path) <> (n.node, n.path) THEN moment END
            FROM unnest(old_ids, new_ids) AS pair (old_id, new_id), streams AS n
            WHERE s.id = ANY (old_ids) AND s.id = pair.old_id AND n.id = ANY (new_ids) AND n.id = pair.new_id
            RETURNING s.id, s.path
        )
        SELECT coalesce(jsonb_agg(jsonb_build_object('what', 'superseded', 'stream_id', o.id, 'path', o.path)), '[]')
        INTO superseded FROM over AS o;
        -- Its watchers follow, as in ready_v1.
        SELECT array_agg(pair.old_id), array_agg(pair.new_id) INTO old_ids, new_ids
        FROM (
            SELECT n.id AS new_id, (SELECT b.id FROM streams AS b
                                    WHERE b.stream_key_id = n.stream_key_id AND b.node = n.node AND b.path = n.path
                                      AND b.end_reason = 'disconnected' AND b.replaced_by IS NULL
                                      AND b.ended_at >= n.claimed_at - interval '60 seconds'
                                    ORDER BY b.ended_at DESC
                                    LIMIT 1) AS old_id
            FROM streams AS n
            WHERE n.id = ANY (startable)
        ) AS pair
        WHERE pair.old_id IS NOT NULL;
        locked := ARRAY(SELECT s.id FROM streams AS s WHERE s.id = ANY (old_ids) ORDER BY s.id FOR UPDATE SKIP LOCKED);
        UPDATE streams AS s SET replaced_by = pair.new_id
        FROM unnest(old_ids, new_ids) AS pair (old_id, new_id)
        WHERE s.id = ANY (locked) AND s.id = pair.old_id;
        WITH begun AS (
            UPDATE streams AS s SET started_at = moment, source_type = l.type, source_id = l.id
            FROM unnest(p_live_ids, p_live_auth_ids, p_live_paths, p_live_types) AS l (id, auth_id, path, type)
            WHERE s.id = ANY (startable) AND l.path = s.path AND (s.auth_id IN (l.auth_id, l.id) OR l.auth_id IS NULL)
            RETURNING s.id, s.path
        )
        SELECT coalesce(jsonb_agg(jsonb_build_object('what', 'active', 'stream_id', b.id, 'path', b.path)), '[]')
        INTO started FROM begun AS b;
    END IF;

    -- Claims that will never be live: their connection was missing twice, or their time is over. (In
    -- between, a connection may be so new that its list does not have it yet; and one that is live, but
    -- could not be had above, starts at the next tick.)
    SELECT array_agg(j.id) FILTER (WHERE j.is_missing),
           array_agg(j.id) FILTER (WHERE j.is_late OR j.is_missing AND j.id = ANY (p_missing_before))
    INTO missing, late
    FROM (
        SELECT s.id, s.lease_expires_at <= moment AND l.id IS NULL AND s.id <> ALL (coalesce(wanted, '{}')) AS is_late,
               s.protocol = ANY (p_known) AND s.claimed_at < p_snapshot_at AND p.id IS NULL AS is_missing
        FROM streams AS s
        LEFT JOIN (SELECT u AS id FROM unnest(p_present) AS u) AS p ON p.id = s.auth_id
        LEFT JOIN (SELECT DISTINCT u AS id FROM unnest(p_live_auth_ids) AS u) AS l ON l.id = s.auth_id
        WHERE s.node = p_node AND s.ended_at IS NULL AND s.started_at IS NULL
    ) AS j;
    IF late IS NOT NULL THEN
        locked := ARRAY(
            SELECT s.id FROM streams AS s
            WHERE s.id = ANY (late) AND s.ended_at IS NULL AND s.started_at IS NULL
            ORDER BY s.id FOR UPDATE SKIP LOCKED);
        WITH over AS (
            UPDATE streams AS s SET
                ended_at = moment, end_reason = 'never_started',
                kick_requested_at = CASE WHEN s.id <> ALL (coalesce(missing, '{}')) THEN moment END
            WHERE s.id = ANY (locked)
            RETURNING s.id, s.path
        )
        SELECT coalesce(jsonb_agg(jsonb_build_object('what', 'never_started', 'stream_id', o.id, 'path', o.path)), '[]')
        INTO failed FROM over AS o;
    END IF;

    -- Streams that were live before the snapshot and stand in no list of it. One that a successor is
    -- about to replace stays until that one is live or has failed.
    gone := ARRAY(
        SELECT s.id
        FROM streams AS s
        WHERE s.node = p_node AND s.ended_at IS NULL AND s.started_at < p_snapshot_at
          AND s.protocol = ANY (p_known)
          AND NOT EXISTS (SELECT 1 FROM unnest(p_present) AS p (id) WHERE p.id = s.source_id)
          AND NOT EXISTS (SELECT 1 FROM streams AS n
                          WHERE n.node = p_node AND n.ended_at IS NULL AND n.started_at IS NULL
                            AND n.replaces = s.id AND n.lease_expires_at > moment));
    IF gone <> '{}' THEN
        locked := ARRAY(
            SELECT s.id FROM streams AS s WHERE s.id = ANY (gone) AND s.ended_at IS NULL
            ORDER BY s.id FOR UPDATE SKIP LOCKED);
        WITH over AS (
            UPDATE streams AS s SET
                ended_at = coalesce(s.interrupted_at, moment),
                end_reason = CASE WHEN p_restarted THEN 'server_restarted' ELSE 'disconnected' END
            WHERE s.id = ANY (locked)
            RETURNING s.id, s.path, s.end_reason
        )
        SELECT coalesce(jsonb_agg(jsonb_build_object('what', o.end_reason, 'stream_id', o.id, 'path', o.path)), '[]')
        INTO ended FROM over AS o;
    END IF;

    -- A kick is done when no list has the connection any more. (That of an RTSP publisher has an entry of
    -- the configuration to take back, see kicks.py; after a while it is done without.)
    gone := ARRAY(
        SELECT s.id FROM streams AS s
        WHERE s.node = p_node AND s.kick_requested_at < p_snapshot_at AND s.kicked_at IS NULL
          AND s.protocol = ANY (p_known)
          AND (s.protocol <> 'rtsp' OR s.kick_requested_at < p_snapshot_at - interval '10 seconds')
          AND NOT EXISTS (SELECT 1 FROM unnest(p_present) AS p (id) WHERE p.id = s.source_id)
          AND NOT EXISTS (SELECT 1 FROM unnest(p_present) AS p (id) WHERE p.id = s.auth_id));
    IF gone <> '{}' THEN
        locked := ARRAY(SELECT s.id FROM streams AS s WHERE s.id = ANY (gone) ORDER BY s.id FOR UPDATE SKIP LOCKED);
        UPDATE streams AS s SET kicked_at = moment WHERE s.id = ANY (locked);
    END IF;

    strangers := ARRAY(
        SELECT l.id
        FROM unnest(p_live_ids) AS l (id)
        WHERE NOT EXISTS (SELECT 1 FROM streams AS s
                          WHERE s.node = p_node AND s.ended_at IS NULL AND s.started_at IS NOT NULL AND s.source_id = l.id));
    stranger_count := cardinality(strangers);
    IF stranger_count > 1000 THEN
        -- First those that have a stream: to be opened again, or closed.
        strangers := ARRAY(
            SELECT l.id
            FROM unnest(strangers) AS l (id)
            ORDER BY EXISTS (SELECT 1 FROM streams AS s WHERE s.source_id = l.id AND s.node = p_node) DESC,
                     EXISTS (SELECT 1 FROM streams AS s WHERE s.auth_id = l.id AND s.node = p_node) DESC
            LIMIT 1000);
    END IF;
    changes := started || superseded || failed || ended;
    change_count := jsonb_array_length(changes);
    -- No more than a socket takes at once: a caller that is frozen must not keep this transaction open.
    missing := missing[:1000];
    SELECT coalesce(jsonb_agg(c.change), '[]') INTO changes
    FROM (SELECT change FROM jsonb_array_elements(changes) AS change LIMIT 200) AS c;
    IF change_count > jsonb_array_length(failed) THEN
        PERFORM bump_live_list_v1();
    END IF;
END
$$;

-- What is known of live connections that are no open stream's: the stream of each, if there was one.
-- is_mistake: it ended for a reason that its being live refutes.
CREATE FUNCTION strangers_v1(p_node text, p_snapshot_at timestamptz, p_source_ids text[], p_auth_ids text[])
RETURNS TABLE (source_id text, stream_id uuid, end_reason text, is_mistake boolean)
LANGUAGE sql AS $$
    SELECT u.source_id, s.id, s.end_reason,
           s.end_reason IN ('disconnected', 'server_lost', 'server_restarted', 'never_started')
    FROM unnest(p_source_ids, p_auth_ids) AS u (source_id, auth_id)
    LEFT JOIN LATERAL (
        SELECT (by_source.found).id, (by_source.found).end_reason, (by_source.found).ended_at
        FROM (SELECT stream_of_connection_v1(p_node, u.source_id) AS found) AS by_source
        WHERE (by_source.found).id IS NOT NULL
        UNION ALL
        SELECT (by_auth.found).id, (by_auth.found).end_reason, (by_auth.found).ended_at
        FROM (SELECT stream_of_connection_v1(p_node, u.auth_id) AS found) AS by_auth
        WHERE (by_auth.found).id IS NOT NULL
        LIMIT 1
    ) AS s ON true
    -- A stream that is open is about to start; one that ended after the snapshot may be over by now.
    WHERE s.id IS NULL OR s.ended_at < p_snapshot_at - interval '0.5 seconds'
$$;

-- Is a key bound to this path that may publish?
CREATE FUNCTION path_bound_v1(p_path text) RETURNS boolean
LANGUAGE sql AS $$
    SELECT EXISTS (
        SELECT 1
        FROM stream_keys AS k
        JOIN broadcasters AS b ON b.id = k.broadcaster_id
        WHERE k.path = p_path AND k.revoked_at IS NULL AND k.disabled_at IS NULL AND b.disabled_at IS NULL
          AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp()))
$$;

-- Open a stream again whose connection is live although its end was recorded. outcome: 'reopened',
-- 'open' (it was), 'busy' (somebody holds what it takes), 'not-leading', or why it may not be: an end_reason of its key, 'stopped',
-- 'path-not-allowed', 'stream-key-in-use', 'path-in-use'; then its connection is to be closed.
CREATE FUNCTION reopen_v1(
    p_epoch bigint, p_stream_id uuid, p_source_type text, p_source_id text, OUT outcome text)
LANGUAGE plpgsql AS $$
DECLARE
    target streams;
    related uuid[];
    locked uuid[];
    moment timestamptz;
BEGIN
    IF NOT leads_v1(p_epoch) THEN
        outcome := 'not-leading';
        RETURN;
    END IF;
    PERFORM set_config('lock_timeout', '300ms', true);
    SELECT s.* INTO target FROM streams AS s WHERE s.id = p_stream_id;
    outcome := 'busy';
    PERFORM 1 FROM stream_keys AS k WHERE k.id = target.stream_key_id FOR UPDATE SKIP LOCKED;
    IF NOT FOUND OR NOT pg_try_advisory_xact_lock(hashtextextended('streamorch.path:' || target.path, 0)) THEN
        RETURN;
    END IF;
    related := ARRAY(
        SELECT s.id
        FROM streams AS s
        WHERE s.id = p_stream_id
           OR s.ended_at IS NULL AND s.stream_key_id = target.stream_key_id
           OR s.ended_at IS NULL AND s.node = target.node AND s.path = target.path);
    locked := ARRAY(SELECT s.id FROM streams AS s WHERE s.id = ANY (related) ORDER BY s.id FOR UPDATE SKIP LOCKED);
    IF cardinality(locked) < cardinality(related) THEN
        RETURN;
    END IF;
    SELECT s.* INTO target FROM streams AS s WHERE s.id = p_stream_id;
    IF target.ended_at IS NULL THEN
        outcome := 'open';
        RETURN;
    END IF;

    moment := clock_timestamp();
    outcome := coalesce(
        key_refusal_v1(target.stream_key_id),
        CASE
            WHEN EXISTS (SELECT 1 FROM stream_keys AS k
                         WHERE k.id = target.stream_key_id AND k.hold_until > moment)
            THEN 'stopped'
            WHEN EXISTS (SELECT 1 FROM stream_keys AS k WHERE k.id = target.stream_key_id AND k.path <> target.path)
            THEN 'path-not-allowed'
            WHEN EXISTS (SELECT 1 FROM streams AS s
                         WHERE s.ended_at IS NULL AND s.started_at IS NOT NULL AND s.stream_key_id = target.stream_key_id)
            THEN 'stream-key-in-use'
            WHEN EXISTS (SELECT 1 FROM streams AS s
                         WHERE s.ended_at IS NULL AND s.stream_key_id <> target.stream_key_id
                           AND s.node = target.node AND s.path = target.path)
                 OR NOT EXISTS (SELECT 1 FROM stream_keys AS k WHERE k.id = target.stream_key_id AND k.path IS NOT NULL)
                    AND path_bound_v1(target.path)
            THEN 'path-in-use'
        END);
    IF outcome IS NOT NULL THEN
        UPDATE streams AS s SET kick_requested_at = coalesce(s.kick_requested_at, moment), kicked_at = NULL
        WHERE s.id = p_stream_id;
        RETURN;
    END IF;
    UPDATE streams AS s SET
        ended_at = NULL, end_reason = NULL, replaced_by = NULL, interrupted_at = NULL,
        kick_requested_at = NULL, kicked_at = NULL,
        started_at = coalesce(s.started_at, moment), source_type = p_source_type, source_id = p_source_id
    WHERE s.id = p_stream_id;
    -- A claim of the key that is under way takes over from it.
    UPDATE streams AS s SET replaces = p_stream_id
    WHERE s.stream_key_id = target.stream_key_id AND s.ended_at IS NULL AND s.started_at IS NULL;
    PERFORM bump_live_list_v1();
    outcome := 'reopened';
END
$$;

-- Ask once more for the end of connections that are live although their stream ended on purpose.
CREATE FUNCTION request_kicks_v1(p_epoch bigint, p_stream_ids uuid[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF leads_v1(p_epoch) THEN
        UPDATE streams AS s SET kick_requested_at = coalesce(s.kick_requested_at, clock_timestamp()), kicked_at = NULL
        WHERE s.ended_at IS NOT NULL AND s.id = ANY (ARRAY(
            SELECT o.id FROM streams AS o WHERE o.id = ANY (p_stream_ids) ORDER BY o.id FOR UPDATE SKIP LOCKED));
    END IF;
END
$$;

-- A live RTSP session of a server that does not tell which connection it belongs to (before v1.11), and
-- that no hook named: on the path of a claim that was ended on purpose before it was live, it is that one's.
-- outcome: its stream, which is to be closed; NULL when there is none.
CREATE FUNCTION name_rtsp_session_v1(
    p_epoch bigint, p_node text, p_path text, p_source_type text, p_source_id text, OUT stream_id uuid)
LANGUAGE plpgsql AS $$
BEGIN
    IF leads_v1(p_epoch) THEN
        UPDATE streams AS s SET source_type = p_source_type, source_id = p_source_id
        WHERE s.id = (
            SELECT o.id FROM streams AS o
            WHERE o.node = p_node AND o.path = p_path AND o.protocol = 'rtsp' AND o.source_id IS NULL
              AND o.kick_requested_at IS NOT NULL AND o.kicked_at IS NULL AND o.end_reason <> 'never_started'
              AND NOT EXISTS (SELECT 1 FROM streams AS c
                              WHERE c.node = p_node AND c.path = p_path AND c.ended_at IS NULL)
            ORDER BY o.claimed_at DESC
            LIMIT 1
            FOR UPDATE SKIP LOCKED)
        RETURNING s.id INTO stream_id;
    END IF;
END
$$;

-- A node answered. p_is_complete: every list, so that this snapshot is one to compare with.
CREATE FUNCTION node_answered_v1(
    p_epoch bigint, p_node text, p_version text, p_started_at timestamptz, p_snapshot_at timestamptz,
    p_is_complete boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT leads_v1(p_epoch) THEN
        RETURN;
    END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO nodes AS n (node, api_seen_at, api_state, version, started_at, started_seen_at, last_tick_at)
    VALUES (p_node, p_snapshot_at, 'ok', p_version, p_started_at, p_snapshot_at, p_snapshot_at)
    ON CONFLICT (node) DO UPDATE SET
        api_seen_at = excluded.api_seen_at,
        api_state = 'ok',
        api_failing_since = NULL,
        api_failures = 0,
        version = excluded.version,
        started_at = CASE WHEN p_is_complete THEN excluded.started_at ELSE n.started_at END,
        started_seen_at = CASE
            WHEN p_is_complete AND (n.started_seen_at IS NULL OR n.started_at IS DISTINCT FROM excluded.started_at)
            THEN excluded.started_seen_at ELSE n.started_seen_at END,
        last_tick_at = CASE WHEN p_is_complete THEN excluded.last_tick_at ELSE n.last_tick_at END;
END
$$;

-- Who publishes on a node without a claim.
CREATE FUNCTION node_unclaimed_v1(p_epoch bigint, p_node text, p_unclaimed jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF leads_v1(p_epoch) THEN
        UPDATE nodes AS n SET unclaimed = p_unclaimed WHERE n.node = p_node;
    END IF;
END
$$;

-- The Control API of a node gave no usable answer: p_state is 'refused', 'silent' or 'unauthorized';
-- p_is_there: it gave some sign of life. When it answered before, and is refused for two ticks or
-- silent for 15 s, and neither claim nor start came meanwhile, the server is lost: its streams end.
-- (An end hook is what a dying server sends.) lost: how many; NULL without the lead.
CREATE FUNCTION node_failed_v1(p_epoch bigint, p_node text, p_state text, p_is_there boolean, OUT lost integer)
LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    known nodes;
    is_away boolean;
    open uuid[];
    heard integer;
BEGIN
    IF NOT leads_v1(p_epoch) THEN
        RETURN;
    END IF;
    lost := 0;
    heard := 0;
    PERFORM set_config('lock_timeout', '300ms', true);
    SELECT n.* INTO known FROM nodes AS n WHERE n.node = p_node;
    known.api_failing_since := CASE WHEN NOT p_is_there THEN coalesce(known.api_failing_since, moment) END;
    known.api_failures := CASE WHEN p_is_there THEN 0 ELSE coalesce(known.api_failures, 0) + 1 END;
    is_away := p_state = 'refused' AND known.api_failures >= 2 OR moment - known.api_failing_since >= interval '15 seconds';

    IF is_away OR moment - known.api_seen_at >= interval '15 seconds' THEN
        -- What was last seen of media and viewers is news no more.
        open := ARRAY(SELECT s.id FROM streams AS s WHERE s.node = p_node AND s.ended_at IS NULL);
        UPDATE stream_stats AS t SET viewers = NULL, media = NULL, bitrate = NULL
        WHERE t.stream_id = ANY (open) AND (t.viewers IS NOT NULL OR t.media IS NOT NULL);
        GET DIAGNOSTICS heard = ROW_COUNT;
    END IF;
    IF is_away AND known.api_seen_at IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM streams AS s
        WHERE s.node = p_node AND s.claimed_at >= known.api_failing_since - interval '1 hour'
          AND (s.claimed_at >= known.api_failing_since OR s.started_at >= known.api_failing_since + interval '1 second')
    ) THEN
        WITH locked AS (
            SELECT s.id FROM streams AS s WHERE s.id = ANY (open) AND s.ended_at IS NULL ORDER BY s.id FOR UPDATE SKIP LOCKED
        ), ended AS (
            UPDATE streams AS s SET
                ended_at = coalesce(s.interrupted_at, moment),
                end_reason = CASE WHEN s.started_at IS NULL THEN 'never_started' ELSE 'server_lost' END
            FROM locked AS l
            WHERE s.id = l.id AND s.ended_at IS NULL
            RETURNING s.id
        )
        SELECT count(*) INTO lost FROM ended;
    END IF;
    IF heard + lost > 0 THEN
        PERFORM bump_live_list_v1();
    END IF;
    INSERT INTO nodes AS n (node, api_state, api_failing_since, api_failures)
    VALUES (p_node, p_state, known.api_failing_since, known.api_failures)
    ON CONFLICT (node) DO UPDATE SET
        api_state = excluded.api_state, api_failing_since = excluded.api_failing_since, api_failures = excluded.api_failures;
END
$$;

-- --- the look ---------------------------------------------------------------------------------------------

-- The connection of this claim was found gone before it was live. outcome: 'ended', or 'late' when it had
-- started or ended meanwhile.
CREATE FUNCTION abandon_claim_v1(p_stream_id uuid, OUT outcome text)
LANGUAGE plpgsql
SET lock_timeout = '300ms' AS $$
BEGIN
    UPDATE streams AS s SET ended_at = clock_timestamp(), end_reason = 'never_started'
    WHERE s.id = p_stream_id AND s.ended_at IS NULL AND s.started_at IS NULL;
    outcome := CASE WHEN FOUND THEN 'ended' ELSE 'late' END;
END
$$;

-- --- what the functions of 0002 do now in addition --------------------------------------------------------

-- As before; the connections of these streams are to be closed.
CREATE OR REPLACE FUNCTION end_streams_of_keys_v1(p_key_ids uuid[], p_reason text) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    were_active integer;
BEGIN
    PERFORM 1 FROM streams AS s WHERE s.stream_key_id = ANY (p_key_ids) AND s.ended_at IS NULL ORDER BY s.id FOR UPDATE;
    WITH ended AS (
        UPDATE streams AS s SET ended_at = clock_timestamp(), end_reason = p_reason, kick_requested_at = clock_timestamp()
        WHERE s.stream_key_id = ANY (p_key_ids) AND s.ended_at IS NULL
        RETURNING s.started_at
    )
    SELECT count(started_at) INTO were_active FROM ended;
    RETURN were_active;
END
$$;

-- As before; the connections of what it ends are to be closed.
CREATE OR REPLACE FUNCTION stop_stream_v1(p_id uuid, p_hold_seconds integer, OUT outcome text)
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
        UPDATE streams AS s SET ended_at = moment, end_reason = 'stopped', kick_requested_at = moment
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

-- As before; what may not start is to be closed, and so is what it takes over from on another path.
CREATE OR REPLACE FUNCTION ready_v1(
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
    stream_id := target.id;
    IF target.id IS NULL OR target.path <> p_path OR target.ended_at IS NOT NULL THEN
        outcome := 'not-found';
        IF target.end_reason IN ('revoked', 'expired', 'disabled', 'stopped') THEN
            -- It is live after all, whatever was seen of it when it ended.
            UPDATE streams AS s SET kick_requested_at = clock_timestamp(), kicked_at = NULL WHERE s.id = target.id;
        END IF;
        RETURN;
    END IF;
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
        UPDATE streams AS s SET
            ended_at = moment, end_reason = outcome, kick_requested_at = moment,
            source_type = p_source_type, source_id = p_source_id -- by which an RTSP publisher is found
        WHERE s.id = target.id;
        RETURN;
    END IF;

    UPDATE streams AS s SET
        ended_at = moment, end_reason = 'superseded', replaced_by = target.id,
        -- On the same path MediaMTX itself closes the old connection (overridePublisher).
        kick_requested_at = CASE WHEN (s.node, s.path) <> (p_node, p_path) THEN moment END
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

-- As before, and 'interrupted': in a takeover MediaMTX tells of the end of the old connection some
-- milliseconds before the start of the new one (v1.12 and older: seconds). The old stream stays in the list
-- until its successor is live; settle_v1 and the reconciler end it when that one never comes. (Where no
-- Control API tells that, it ends at once: better a gap in the list than a dead stream for the length of a lease.)
CREATE OR REPLACE FUNCTION not_ready_v1(
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
    IF node_seen_v1(p_node) AND has_successor_v1(target.id, target.stream_key_id) THEN
        UPDATE streams AS s SET interrupted_at = clock_timestamp()
        WHERE s.id = target.id AND s.ended_at IS NULL AND s.started_at IS NOT NULL AND s.interrupted_at IS NULL;
        IF FOUND THEN
            PERFORM bump_live_list_v1();
            outcome := 'interrupted';
        ELSE
            outcome := 'late';
        END IF;
        RETURN;
    END IF;
    UPDATE streams AS s SET ended_at = coalesce(s.interrupted_at, clock_timestamp()), end_reason = 'disconnected'
    WHERE s.id = target.id AND s.ended_at IS NULL AND s.started_at IS NOT NULL;
    IF FOUND THEN
        PERFORM bump_live_list_v1();
        outcome := 'ended';
    ELSE
        outcome := 'late';
    END IF;
END
$$;
