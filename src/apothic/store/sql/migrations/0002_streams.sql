-- The events once more, with a cheaper check of their types.
CREATE TEMP TABLE kept AS SELECT * FROM events;
DROP TABLE events;
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
INSERT INTO events SELECT * FROM kept;
DROP TABLE kept;
CREATE TRIGGER events_in_order BEFORE INSERT ON events
WHEN NEW.idx >= (SELECT next_index FROM jobs WHERE seq = NEW.job)
BEGIN
    SELECT RAISE(ABORT, 'an event needs an index that the job has given out');
END;

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
