-- When the schedule of a live version comes round next, by wall time. `since` is when its deployment went live.
CREATE TABLE schedules (
    version INTEGER PRIMARY KEY REFERENCES versions (id),
    since   REAL NOT NULL,
    next_at REAL NOT NULL
) STRICT;
CREATE INDEX schedules_next ON schedules (next_at);

-- What became of each tick of a function's schedule, through all its versions: one row a tick, however many look.
CREATE TABLE ticks (
    function_id TEXT NOT NULL REFERENCES functions (id),
    at          REAL NOT NULL,
    outcome     TEXT NOT NULL CHECK (outcome IN ('job', 'overlap', 'missed', 'refused')),
    job         TEXT CHECK ((job IS NOT NULL) = (outcome = 'job')),
    PRIMARY KEY (function_id, at)
) STRICT, WITHOUT ROWID;

-- What is left of jobs past their retention: that they were, and under which idempotency key.
CREATE TABLE gone_jobs (
    id              TEXT PRIMARY KEY,
    function_id     TEXT NOT NULL REFERENCES functions (id),
    created_at      REAL NOT NULL,
    gone_at         REAL NOT NULL,
    input_hash      TEXT NOT NULL,
    idempotency_key TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX gone_jobs_by_age ON gone_jobs (gone_at);
CREATE UNIQUE INDEX gone_jobs_idempotent ON gone_jobs (function_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- Blobs that nothing names any more, and since when (wall time): who was told of one may still be about to fetch it.
CREATE TABLE unwanted_blobs (
    sha256 TEXT PRIMARY KEY REFERENCES blobs (sha256),
    since  REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX event_blobs_by_hash ON event_blobs (sha256);
CREATE INDEX deployment_blobs_by_hash ON deployment_blobs (sha256);
CREATE INDEX jobs_by_input ON jobs (input_sha256) WHERE input_sha256 IS NOT NULL;
CREATE INDEX jobs_by_result ON jobs (result_sha256) WHERE result_sha256 IS NOT NULL;
CREATE INDEX jobs_by_failure ON jobs (failure_sha256) WHERE failure_sha256 IS NOT NULL;
CREATE INDEX jobs_by_end ON jobs (ended_at) WHERE ended_at IS NOT NULL;

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
