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

CREATE TRIGGER ticks_forget AFTER DELETE ON gone_jobs
BEGIN
    UPDATE ticks SET job = NULL WHERE job = OLD.id;
END;
