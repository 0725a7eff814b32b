-- The tables. State is computed from timestamps, never stored beside them; the
-- constraints and the partial unique indexes are the last line of defence behind
-- the functions of 0002.

CREATE TABLE broadcasters (
    id uuid PRIMARY KEY,
    display_name text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    disabled_at timestamptz,
    deleted_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT broadcasters_display_name_length CHECK (char_length(display_name) BETWEEN 1 AND 255),
    CONSTRAINT broadcasters_metadata_is_object CHECK (jsonb_typeof(metadata) = 'object')
);

-- GET /broadcasters, newest first.
CREATE INDEX broadcasters_by_created ON broadcasters (created_at DESC, id DESC) WHERE deleted_at IS NULL;

-- A key is a credential. Only its SHA-256 and its last four characters are kept,
-- so a dump of the database lets nobody publish.
CREATE TABLE stream_keys (
    id uuid PRIMARY KEY,
    broadcaster_id uuid NOT NULL CONSTRAINT stream_keys_broadcaster REFERENCES broadcasters (id),
    key_hash bytea NOT NULL,
    hint text NOT NULL,
    label text,
    path text,
    takeover text NOT NULL DEFAULT 'stalled',
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    disabled_at timestamptz,
    hold_until timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    CONSTRAINT stream_keys_hash_unique UNIQUE (key_hash),
    CONSTRAINT stream_keys_hash_length CHECK (octet_length(key_hash) = 32),
    CONSTRAINT stream_keys_hint_length CHECK (char_length(hint) <= 4),
    CONSTRAINT stream_keys_label_length CHECK (char_length(label) <= 255),
    CONSTRAINT stream_keys_path_length CHECK (char_length(path) BETWEEN 1 AND 255),
    CONSTRAINT stream_keys_takeover_known CHECK (takeover IN ('stalled', 'always', 'never')),
    CONSTRAINT stream_keys_metadata_is_object CHECK (jsonb_typeof(metadata) = 'object')
) WITH (fillfactor = 80); -- each claim writes last_used_at: room for HOT updates

-- GET /stream-keys, newest first; the same of one broadcaster, and what disable and delete lock.
CREATE INDEX stream_keys_by_created ON stream_keys (created_at DESC, id DESC);
CREATE INDEX stream_keys_by_broadcaster ON stream_keys (broadcaster_id, created_at DESC, id DESC);
-- Which keys hold this path? Asked by every claim of an unbound key.
CREATE INDEX stream_keys_by_path ON stream_keys (path) WHERE path IS NOT NULL AND revoked_at IS NULL;

-- One row per publishing connection. pending: neither started_at nor ended_at; active:
-- started_at alone; ended: ended_at. auth_id is what POST /auth said, source_id what hooks
-- and the Control API say: they differ for RTSP before MediaMTX v1.19.3.
CREATE TABLE streams (
    id uuid PRIMARY KEY,
    stream_key_id uuid NOT NULL CONSTRAINT streams_stream_key REFERENCES stream_keys (id),
    node text NOT NULL,
    path text NOT NULL,
    protocol text NOT NULL,
    auth_id text NOT NULL,
    source_id text,
    source_type text,
    remote_address text,
    user_agent text,
    claimed_at timestamptz NOT NULL,
    lease_expires_at timestamptz NOT NULL,
    started_at timestamptz,
    interrupted_at timestamptz,
    ended_at timestamptz,
    end_reason text,
    replaces uuid CONSTRAINT streams_replaces REFERENCES streams (id),
    replaced_by uuid CONSTRAINT streams_replaced_by REFERENCES streams (id),
    metadata jsonb NOT NULL DEFAULT '{}',
    recording_ref text,
    CONSTRAINT streams_end_has_reason CHECK ((ended_at IS NULL) = (end_reason IS NULL)),
    CONSTRAINT streams_end_reason_known CHECK (end_reason IN (
        'never_started', 'disconnected', 'superseded', 'revoked', 'expired', 'disabled',
        'stopped', 'server_restarted', 'server_lost')),
    CONSTRAINT streams_never_started_is_unstarted CHECK (end_reason <> 'never_started' OR started_at IS NULL),
    CONSTRAINT streams_live_end_was_started CHECK (
        end_reason NOT IN ('disconnected', 'superseded', 'server_restarted', 'server_lost') OR started_at IS NOT NULL),
    CONSTRAINT streams_replaces_another CHECK (replaces <> id AND replaced_by <> id),
    CONSTRAINT streams_connection_length CHECK (char_length(auth_id) BETWEEN 1 AND 255 AND char_length(source_id) BETWEEN 1 AND 255),
    CONSTRAINT streams_recording_ref_length CHECK (char_length(recording_ref) <= 512),
    CONSTRAINT streams_metadata_is_object CHECK (jsonb_typeof(metadata) = 'object')
) WITH (fillfactor = 80);

-- One pending and one active stream per key; also how a claim finds the open streams of its key.
CREATE UNIQUE INDEX streams_one_pending_one_active_per_key
    ON streams (stream_key_id, (started_at IS NULL)) WHERE ended_at IS NULL;
-- One pending and one active stream per path of a node; also how a claim finds who is on its path.
CREATE UNIQUE INDEX streams_one_pending_one_active_per_path
    ON streams (node, path, (started_at IS NULL)) WHERE ended_at IS NULL;
-- The live list, newest first.
CREATE INDEX streams_live ON streams (started_at DESC, id DESC) WHERE ended_at IS NULL AND started_at IS NOT NULL;
-- A hook names a connection: also one that ended, so that it is not revived.
CREATE INDEX streams_by_auth_id ON streams (auth_id);
CREATE INDEX streams_by_source_id ON streams (source_id) WHERE source_id IS NOT NULL;
-- History, newest first: all of it, of one key, of one path.
CREATE INDEX streams_by_claimed ON streams (claimed_at DESC, id DESC);
CREATE INDEX streams_by_key ON streams (stream_key_id, claimed_at DESC, id DESC);
CREATE INDEX streams_by_path ON streams (path, claimed_at DESC, id DESC);

-- Connections whose end was reported before anything else was known of them (hooks are
-- unordered processes): a start that comes within a minute after is refused.
CREATE TABLE departures (
    node text NOT NULL,
    source_id text NOT NULL,
    departed_at timestamptz NOT NULL,
    PRIMARY KEY (node, source_id)
);
CREATE INDEX departures_by_time ON departures (departed_at);

-- What is known of each media server. A node without api_seen_at has never answered on
-- its Control API, so no connection of it can be looked at.
CREATE TABLE nodes (
    node text PRIMARY KEY,
    api_seen_at timestamptz
);

-- One row: the version of the live list. Bumped as the last write of each transaction that
-- changes what the list shows, so that an unchanged list costs its readers one tiny statement.
CREATE TABLE live_list (
    only_row boolean PRIMARY KEY DEFAULT true,
    version bigint NOT NULL,
    changed_at timestamptz NOT NULL,
    epoch text NOT NULL,
    CONSTRAINT live_list_has_one_row CHECK (only_row)
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

-- The epoch keeps an ETag of one database from meaning anything in another.
INSERT INTO live_list (version, changed_at, epoch)
VALUES (1, clock_timestamp(), substr(md5(gen_random_uuid()::text), 1, 8));
