-- Each index costs each job a row and each commit a page: those that have ended well are too many to be sought by
-- status, and those that have not ended are few, and in jobs_waiting or among the leases.
DROP INDEX jobs_by_status;
DROP INDEX jobs_unfinished;
CREATE INDEX jobs_ended_badly ON jobs (status, seq) WHERE status IN ('failed', 'cancelled', 'timed_out');

-- Each dispatch asks whether one starts, and deployments are never deleted.
CREATE INDEX deployments_starting ON deployments (id) WHERE status = 'starting';

-- For the trigger that looks each move up by its two ends.
CREATE INDEX arrows_by_ends ON arrows (source, target);

-- A lease is found by its job, and its token compared: a token needs no index of its own.
DROP TRIGGER jobs_lease_ends;
CREATE TEMP TABLE kept AS SELECT job, token, attempt, container_id, expires_at, last_report FROM leases;
DROP TABLE leases;
CREATE TABLE leases (
    job          INTEGER PRIMARY KEY REFERENCES jobs (seq),
    token        TEXT NOT NULL,
    attempt      INTEGER NOT NULL CHECK (attempt >= 1),
    container_id TEXT NOT NULL REFERENCES containers (id),
    expires_at   REAL NOT NULL,
    last_report  INTEGER NOT NULL DEFAULT -1
) STRICT;
INSERT INTO leases SELECT * FROM temp.kept;
DROP TABLE temp.kept;
CREATE INDEX leases_by_container ON leases (container_id);
CREATE TRIGGER jobs_lease_ends AFTER UPDATE OF status ON jobs
WHEN NOT (SELECT leased FROM statuses WHERE status = NEW.status)
     AND (SELECT leased FROM statuses WHERE status = OLD.status)
BEGIN
    DELETE FROM leases WHERE job = NEW.seq;
END;
