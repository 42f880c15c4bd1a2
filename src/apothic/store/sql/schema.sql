-- The truth. Every rule of protocol/lifecycle.py that can be said in SQL is said here again, so that a wrong program
-- cannot write a wrong row. `arrows` and `statuses` are filled from the lifecycle table at every open.

CREATE TABLE statuses (
    status TEXT PRIMARY KEY,
    final  INTEGER NOT NULL CHECK (final IN (0, 1)),
    leased INTEGER NOT NULL CHECK (leased IN (0, 1))
) STRICT, WITHOUT ROWID;

CREATE TABLE arrows (
    move   TEXT NOT NULL,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    PRIMARY KEY (move, source)
) STRICT, WITHOUT ROWID;
CREATE INDEX arrows_by_ends ON arrows (source, target);

CREATE TABLE blobs (
    sha256     TEXT PRIMARY KEY CHECK (length(sha256) = 64),
    size       INTEGER NOT NULL CHECK (size >= 0),
    created_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE apps (
    name       TEXT PRIMARY KEY,
    created_at REAL NOT NULL,
    live       TEXT REFERENCES deployments (id),
    stopped    INTEGER NOT NULL DEFAULT 0 CHECK (stopped IN (0, 1))
) STRICT, WITHOUT ROWID;

CREATE TABLE deployments (
    id           TEXT PRIMARY KEY,
    app          TEXT NOT NULL REFERENCES apps (name),
    content_hash TEXT NOT NULL,
    manifest     BLOB NOT NULL,
    status       TEXT NOT NULL CHECK (status IN ('starting', 'live', 'ready', 'failed', 'stopped')),
    created_at   REAL NOT NULL,
    -- Rises with each deploy and each activation of the app: what was asked for last is what shall be live.
    asked        INTEGER NOT NULL DEFAULT 0,
    failure      BLOB CHECK ((failure IS NOT NULL) = (status = 'failed')),
    UNIQUE (app, content_hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX deployments_starting ON deployments (id) WHERE status = 'starting';

CREATE TABLE deployment_blobs (
    deployment_id TEXT NOT NULL REFERENCES deployments (id),
    sha256        TEXT NOT NULL REFERENCES blobs (sha256),
    PRIMARY KEY (deployment_id, sha256)
) STRICT, WITHOUT ROWID;

CREATE TABLE functions (
    id   TEXT PRIMARY KEY,
    app  TEXT NOT NULL REFERENCES apps (name),
    name TEXT NOT NULL,
    UNIQUE (app, name)
) STRICT, WITHOUT ROWID;

-- One function of one deployment: what a job is pinned to, and what a container runs.
CREATE TABLE versions (
    id             INTEGER PRIMARY KEY,
    deployment_id  TEXT NOT NULL REFERENCES deployments (id),
    function_id    TEXT NOT NULL REFERENCES functions (id),
    spec           BLOB NOT NULL,
    slots          INTEGER NOT NULL CHECK (slots >= 1),
    per_container  INTEGER NOT NULL CHECK (per_container >= 1),
    max_containers INTEGER NOT NULL CHECK (max_containers >= 1),
    max_pending    INTEGER NOT NULL CHECK (max_pending >= 0),
    keep_warm_s    REAL NOT NULL,
    cpu            REAL NOT NULL,
    memory_mb      INTEGER NOT NULL,
    gpu            TEXT,
    stream_window  INTEGER NOT NULL,
    -- How many jobs are queued or retrying. Kept by the triggers below and by nothing else: counting 10^4 rows at each
    -- submit cost 0.3 ms.
    waiting        INTEGER NOT NULL DEFAULT 0 CHECK (waiting >= 0),
    UNIQUE (deployment_id, function_id)
) STRICT;
CREATE INDEX versions_waiting ON versions (id) WHERE waiting > 0;

CREATE TABLE jobs (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT NOT NULL UNIQUE,
    version         INTEGER NOT NULL REFERENCES versions (id),
    function_id     TEXT NOT NULL REFERENCES functions (id),
    status          TEXT NOT NULL REFERENCES statuses (status),
    attempt         INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    next_index      INTEGER NOT NULL DEFAULT 0 CHECK (next_index >= 0),
    created_at      REAL NOT NULL,
    -- 0 for "at once": a wall clock that jumps must not hold back a job that nobody delayed.
    run_at          REAL NOT NULL DEFAULT 0,
    started_at      REAL,
    ended_at        REAL,
    expires_at      REAL,
    timeout_s       REAL NOT NULL CHECK (timeout_s > 0),
    retries         BLOB NOT NULL,
    delivery        TEXT NOT NULL CHECK (delivery IN ('at_least_once', 'at_most_once')),
    accept          TEXT NOT NULL,
    input           BLOB NOT NULL,
    input_sha256    TEXT REFERENCES blobs (sha256),
    input_hash      TEXT NOT NULL,
    idempotency_key TEXT CHECK (length(idempotency_key) BETWEEN 1 AND 200),
    parent          TEXT,
    retry_of        TEXT,
    user_failures   INTEGER NOT NULL DEFAULT 0,
    crashes         INTEGER NOT NULL DEFAULT 0,
    drains          INTEGER NOT NULL DEFAULT 0,
    result          BLOB,
    result_sha256   TEXT REFERENCES blobs (sha256),
    failure         BLOB,
    failure_sha256  TEXT REFERENCES blobs (sha256),
    CHECK ((ended_at IS NOT NULL) = (status IN ('succeeded', 'failed', 'cancelled', 'timed_out'))),
    CHECK ((result IS NOT NULL) = (status = 'succeeded')),
    CHECK ((failure IS NOT NULL) = (status IN ('failed', 'cancelled', 'timed_out')))
) STRICT;
CREATE UNIQUE INDEX jobs_idempotent ON jobs (function_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_waiting ON jobs (version, run_at, seq) WHERE status IN ('queued', 'retrying');
CREATE INDEX jobs_due ON jobs (run_at) WHERE status IN ('queued', 'retrying') AND run_at > 0;
CREATE INDEX jobs_expiring ON jobs (expires_at) WHERE status = 'queued' AND expires_at IS NOT NULL;
CREATE INDEX jobs_by_function ON jobs (function_id, seq);
-- Each index costs each job a row and each commit a page: those that have ended well are too many to be sought by
-- status, and those that have not ended are few, and in jobs_waiting or among the leases.
CREATE INDEX jobs_ended_badly ON jobs (status, seq) WHERE status IN ('failed', 'cancelled', 'timed_out');

CREATE TABLE agents (
    id          TEXT PRIMARY KEY,
    host        TEXT NOT NULL,
    pid         INTEGER NOT NULL,
    release     TEXT NOT NULL,
    cpu         REAL NOT NULL,
    memory_mb   INTEGER NOT NULL,
    gpus        TEXT NOT NULL,
    connected   INTEGER NOT NULL CHECK (connected IN (0, 1)),
    -- By this control plane's monotonic clock: when a disconnected agent counts as gone.
    gone_at     REAL CHECK ((gone_at IS NULL) = connected)
) STRICT, WITHOUT ROWID;

CREATE TABLE containers (
    id            TEXT PRIMARY KEY,
    agent_id      TEXT NOT NULL REFERENCES agents (id),
    version       INTEGER NOT NULL REFERENCES versions (id),
    state         TEXT NOT NULL CHECK (state IN ('starting', 'ready', 'stopping')),
    idle_since    REAL
) STRICT, WITHOUT ROWID;
CREATE INDEX containers_by_version ON containers (version);
CREATE INDEX containers_by_agent ON containers (agent_id);

-- The right to write to a job. Slots in use are counted from these rows, never kept beside them.
CREATE TABLE leases (
    job          INTEGER PRIMARY KEY REFERENCES jobs (seq),
    token        TEXT NOT NULL,
    attempt      INTEGER NOT NULL CHECK (attempt >= 1),
    container_id TEXT NOT NULL REFERENCES containers (id),
    expires_at   REAL NOT NULL,
    last_report  INTEGER NOT NULL DEFAULT -1
) STRICT;
CREATE INDEX leases_by_container ON leases (container_id);

-- `data` is the event's JSON, ready to be sent.
CREATE TABLE events (
    job     INTEGER NOT NULL REFERENCES jobs (seq),
    idx     INTEGER NOT NULL CHECK (idx >= 0),
    -- Not IN: of six names SQLite makes a table for each row, which cost 5 µs of the 9 that an event took.
    type    TEXT NOT NULL
            CHECK (type = 'job.stream_item' OR type = 'job.log' OR type = 'job.status' OR type = 'job.result'
                   OR type = 'job.error' OR type = 'job.end'),
    attempt INTEGER NOT NULL,
    data    TEXT NOT NULL,
    PRIMARY KEY (job, idx)
) STRICT, WITHOUT ROWID;

-- What a job keeps of the types that are trimmed, and what it has let go.
CREATE TABLE windows (
    job     INTEGER NOT NULL REFERENCES jobs (seq),
    type    TEXT NOT NULL CHECK (type IN ('job.log', 'job.stream_item')),
    kept    INTEGER NOT NULL CHECK (kept >= 0),
    bytes   INTEGER NOT NULL CHECK (bytes >= 0),
    lost    INTEGER NOT NULL DEFAULT 0,
    trimmed INTEGER NOT NULL DEFAULT -1,
    PRIMARY KEY (job, type)
) STRICT, WITHOUT ROWID;

-- The blobs that items name: a blob is wanted as long as an event with a reference to it is kept.
CREATE TABLE event_blobs (
    job    INTEGER NOT NULL REFERENCES jobs (seq),
    idx    INTEGER NOT NULL,
    sha256 TEXT NOT NULL REFERENCES blobs (sha256),
    size   INTEGER NOT NULL CHECK (size >= 0),
    PRIMARY KEY (job, idx)
) STRICT, WITHOUT ROWID;

-- A reader for whom items are kept until it was sent them. `sent` is where it stood when that was last written; what
-- has been sent since is known to its connection alone. `until` is by this control plane's monotonic clock: when the
-- hold ends, unless it is renewed, as a lease is, for a reader that is connected.
CREATE TABLE holds (
    job    INTEGER PRIMARY KEY REFERENCES jobs (seq),
    sent   INTEGER NOT NULL CHECK (sent >= -1),
    until  REAL NOT NULL,
    paused INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1))
) STRICT;

-- Where a generator's items begin again at 0: the status event that opened the new attempt.
CREATE TABLE restarts (
    job INTEGER NOT NULL REFERENCES jobs (seq),
    idx INTEGER NOT NULL CHECK (idx >= 0),
    PRIMARY KEY (job, idx)
) STRICT, WITHOUT ROWID;

-- When the schedule of a live version comes round next, by wall time. `since` is when its deployment went live.
CREATE TABLE schedules (
    version INTEGER PRIMARY KEY REFERENCES versions (id),
    since   REAL NOT NULL,
    next_at REAL NOT NULL
) STRICT;
CREATE INDEX schedules_next ON schedules (next_at);

-- What became of each tick of a function's schedule, through all its versions: one row a tick, however many look.
-- `job` is NULL again once nothing is left of the job.
CREATE TABLE ticks (
    function_id TEXT NOT NULL REFERENCES functions (id),
    at          REAL NOT NULL,
    outcome     TEXT NOT NULL CHECK (outcome IN ('job', 'overlap', 'missed', 'refused')),
    job         TEXT CHECK (job IS NULL OR outcome = 'job'),
    PRIMARY KEY (function_id, at)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX ticks_by_job ON ticks (job) WHERE job IS NOT NULL;

-- What is left of jobs past their retention: that they were, how they ended, and under which idempotency key.
CREATE TABLE gone_jobs (
    id              TEXT PRIMARY KEY,
    version         INTEGER NOT NULL REFERENCES versions (id),
    function_id     TEXT NOT NULL REFERENCES functions (id),
    status          TEXT NOT NULL REFERENCES statuses (status),
    attempt         INTEGER NOT NULL,
    created_at      REAL NOT NULL,
    ended_at        REAL NOT NULL,
    gone_at         REAL NOT NULL,
    input_hash      TEXT NOT NULL,
    idempotency_key TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX gone_jobs_by_age ON gone_jobs (gone_at);
-- Not unique: a key may be used again after a day, and its second job go while the first one is still remembered.
CREATE INDEX gone_jobs_idempotent ON gone_jobs (function_id, idempotency_key, created_at)
 WHERE idempotency_key IS NOT NULL;

-- Blobs that nothing names any more, and since when (wall time): who was told of one may still be about to fetch it.
CREATE TABLE unwanted_blobs (
    sha256 TEXT PRIMARY KEY REFERENCES blobs (sha256),
    since  REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX unwanted_blobs_by_age ON unwanted_blobs (since);
CREATE INDEX event_blobs_by_hash ON event_blobs (sha256);
CREATE INDEX deployment_blobs_by_hash ON deployment_blobs (sha256);
CREATE INDEX jobs_by_input ON jobs (input_sha256) WHERE input_sha256 IS NOT NULL;
CREATE INDEX jobs_by_result ON jobs (result_sha256) WHERE result_sha256 IS NOT NULL;
CREATE INDEX jobs_by_failure ON jobs (failure_sha256) WHERE failure_sha256 IS NOT NULL;
CREATE INDEX jobs_by_end ON jobs (ended_at) WHERE ended_at IS NOT NULL;

-- Every name of a blob. It is wanted as long as it is in here.
CREATE VIEW wanted_blobs (sha256) AS
    SELECT sha256 FROM event_blobs
    UNION ALL SELECT sha256 FROM deployment_blobs
    UNION ALL SELECT input_sha256 FROM jobs WHERE input_sha256 IS NOT NULL
    UNION ALL SELECT result_sha256 FROM jobs WHERE result_sha256 IS NOT NULL
    UNION ALL SELECT failure_sha256 FROM jobs WHERE failure_sha256 IS NOT NULL;

-- A mark never stays on a blob that is named, so its time always counts from when the last name went.
CREATE TRIGGER events_want_blob AFTER INSERT ON event_blobs
BEGIN
    DELETE FROM unwanted_blobs WHERE sha256 = NEW.sha256;
END;
CREATE TRIGGER deployments_want_blob AFTER INSERT ON deployment_blobs
BEGIN
    DELETE FROM unwanted_blobs WHERE sha256 = NEW.sha256;
END;
CREATE TRIGGER jobs_want_input AFTER INSERT ON jobs WHEN NEW.input_sha256 IS NOT NULL
BEGIN
    DELETE FROM unwanted_blobs WHERE sha256 = NEW.input_sha256;
END;
CREATE TRIGGER jobs_want_outcome AFTER UPDATE OF result_sha256, failure_sha256 ON jobs
WHEN NEW.result_sha256 IS NOT NULL OR NEW.failure_sha256 IS NOT NULL
BEGIN
    DELETE FROM unwanted_blobs WHERE sha256 IN (NEW.result_sha256, NEW.failure_sha256);
END;

-- How many bytes all blobs have together: adding up 10^5 rows takes 10 ms, and the disk ceiling asks each second. Kept
-- by the triggers and by nothing else.
CREATE TABLE blob_total (bytes INTEGER NOT NULL CHECK (bytes >= 0)) STRICT;
INSERT INTO blob_total SELECT coalesce(sum(size), 0) FROM blobs;
CREATE TRIGGER blobs_more AFTER INSERT ON blobs
BEGIN
    UPDATE blob_total SET bytes = bytes + NEW.size;
END;
CREATE TRIGGER blobs_less AFTER DELETE ON blobs
BEGIN
    UPDATE blob_total SET bytes = bytes - OLD.size;
END;

-- What containers printed that belongs to no job, numbered within the app. The newest are kept.
CREATE TABLE app_lines (
    app          TEXT NOT NULL REFERENCES apps (name),
    idx          INTEGER NOT NULL CHECK (idx >= 0),
    function     TEXT NOT NULL,
    container_id TEXT NOT NULL,
    stream       TEXT NOT NULL CHECK (stream IN ('stdout', 'stderr')),
    text         TEXT NOT NULL,
    at           REAL NOT NULL,
    cont         INTEGER NOT NULL CHECK (cont IN (0, 1)),
    PRIMARY KEY (app, idx)
) STRICT, WITHOUT ROWID;

-- How many of such lines of a container are stored, so that a frame that comes twice counts once.
CREATE TABLE container_lines (
    container_id TEXT PRIMARY KEY REFERENCES containers (id) ON DELETE CASCADE,
    said         INTEGER NOT NULL CHECK (said >= 0)
) STRICT, WITHOUT ROWID;

-- Versions that answer HTTP. `port` is the one that a web server has to listen on; `proved` tells that a container of
-- it has been ready, so that its deployment may go live; `wanted` is how many containers the gateway wants now, 0 when
-- there are enough.
CREATE TABLE services (
    version INTEGER PRIMARY KEY REFERENCES versions (id),
    port    INTEGER CHECK (port BETWEEN 1 AND 65535),
    proved  INTEGER NOT NULL DEFAULT 0 CHECK (proved IN (0, 1)),
    wanted  INTEGER NOT NULL DEFAULT 0 CHECK (wanted >= 0)
) STRICT;

-- Where a service's container answers ('' until it is ready), and what a relay wants to hear before it leads there.
CREATE TABLE addresses (
    container_id TEXT PRIMARY KEY REFERENCES containers (id) ON DELETE CASCADE,
    address      TEXT NOT NULL DEFAULT '',
    secret       TEXT NOT NULL CHECK (secret <> '')
) STRICT, WITHOUT ROWID;

-- Which key first said hello as an agent. As long as both are known and the key is good, no other speaks for it.
CREATE TABLE agent_keys (
    agent_id TEXT PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE,
    key_id   TEXT NOT NULL REFERENCES keys (id)
) STRICT, WITHOUT ROWID;

-- What became of a deployment, in order. `data` is the event's JSON, ready to be sent.
CREATE TABLE deployment_events (
    deployment_id TEXT NOT NULL REFERENCES deployments (id),
    idx           INTEGER NOT NULL CHECK (idx >= 0),
    status        TEXT NOT NULL
                  CHECK (status IN ('building', 'starting', 'ready', 'live', 'draining', 'stopped', 'failed')),
    data          TEXT NOT NULL,
    PRIMARY KEY (deployment_id, idx)
) STRICT, WITHOUT ROWID;

CREATE TABLE keys (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    secret_hash  TEXT NOT NULL UNIQUE,
    scopes       TEXT NOT NULL,
    created_at   REAL NOT NULL,
    expires_at   REAL,
    last_used_at REAL,
    revoked_at   REAL
) STRICT, WITHOUT ROWID;

CREATE TABLE secrets (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER jobs_move BEFORE UPDATE OF status ON jobs
WHEN OLD.status <> NEW.status
     AND NOT EXISTS (SELECT 1 FROM arrows WHERE source = OLD.status AND target = NEW.status)
BEGIN
    SELECT RAISE(ABORT, 'this move is not in the lifecycle table');
END;

CREATE TRIGGER jobs_lease_ends AFTER UPDATE OF status ON jobs
WHEN NOT (SELECT leased FROM statuses WHERE status = NEW.status)
     AND (SELECT leased FROM statuses WHERE status = OLD.status)
BEGIN
    DELETE FROM leases WHERE job = NEW.seq;
END;

CREATE TRIGGER jobs_wait_begins AFTER INSERT ON jobs
WHEN NEW.status IN ('queued', 'retrying')
BEGIN
    UPDATE versions SET waiting = waiting + 1 WHERE id = NEW.version;
END;

CREATE TRIGGER jobs_wait_changes AFTER UPDATE OF status ON jobs
WHEN (OLD.status IN ('queued', 'retrying')) <> (NEW.status IN ('queued', 'retrying'))
BEGIN
    UPDATE versions SET waiting = waiting + iif(NEW.status IN ('queued', 'retrying'), 1, -1) WHERE id = NEW.version;
END;

CREATE TRIGGER events_in_order BEFORE INSERT ON events
WHEN NEW.idx >= (SELECT next_index FROM jobs WHERE seq = NEW.job)
BEGIN
    SELECT RAISE(ABORT, 'an event needs an index that the job has given out');
END;

CREATE TRIGGER ticks_forget AFTER DELETE ON gone_jobs
BEGIN
    UPDATE ticks SET job = NULL WHERE job = OLD.id;
END;
