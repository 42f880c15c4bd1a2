-- take_indices: give out the next n indices of a job
UPDATE jobs SET next_index = next_index + :n WHERE seq = :job RETURNING next_index;

-- insert_event: one event under an index that was given out
INSERT INTO events (job, idx, type, attempt, data) VALUES (?, ?, ?, ?, ?);

-- insert_events: events of one type under indices that were given out, in one step: at each step of a statement Python
-- lets go of its interpreter lock, and beside a busy event loop getting it back took longer than the insert itself
INSERT INTO events (job, idx, type, attempt, data)
SELECT :job, :first + key, :type, :attempt, value FROM json_each(:texts);

-- insert_event_blob: an event that names a blob
INSERT INTO event_blobs (job, idx, sha256, size) VALUES (?, ?, ?, ?);

-- window: what the job keeps of one type
SELECT kept, bytes, lost, trimmed FROM windows WHERE job = :job AND type = :type;

-- windows: the same, of all types
SELECT type, kept, bytes, lost, trimmed FROM windows WHERE job = :job;

-- set_window: the same, after an append and its trim
INSERT INTO windows (job, type, kept, bytes, lost, trimmed) VALUES (:job, :type, :kept, :bytes, :lost, :trimmed)
ON CONFLICT (job, type) DO UPDATE
   SET kept = excluded.kept, bytes = excluded.bytes, lost = excluded.lost, trimmed = excluded.trimmed;

-- oldest_events: those of one type that are still kept, and what each takes, a blob that it names included
SELECT idx, length(data) + coalesce((SELECT size FROM event_blobs AS named
                                      WHERE named.job = events.job AND named.idx = events.idx), 0) AS bytes
  FROM events WHERE job = :job AND type = :type AND idx > :trimmed AND idx <= :upto ORDER BY idx;

-- trim_events: let go of the oldest of one type
DELETE FROM events WHERE job = :job AND type = :type AND idx > :trimmed AND idx <= :upto;

-- trim_event_blobs: and of the blobs that they name
DELETE FROM event_blobs WHERE job = :job AND idx <= :upto;

-- log_lines: a page of a job's retained output
SELECT idx, attempt, data FROM events
 WHERE job = :job AND type = 'job.log' AND idx > :after_index ORDER BY idx LIMIT :limit;

-- log_line_at: where a line stands in the job's index
SELECT idx FROM events
 WHERE job = :job AND type = 'job.log' AND json_extract(data, '$.line') <= :line ORDER BY idx DESC LIMIT 1;

-- last_lines: the end of a job's output, newest first
SELECT data FROM events WHERE job = :job AND type = 'job.log' ORDER BY idx DESC LIMIT :limit;

-- streamed_job: what a stream has to know of its job
SELECT seq, status, attempt, next_index, ended_at FROM jobs WHERE id = :id;

-- page: a page of a stream, in one step (as insert_events): how many events, and, unless they are too large together,
-- these, as text between characters that no JSON holds
WITH found AS MATERIALIZED (
    SELECT idx, type, data FROM events
     WHERE job = :job AND idx > :after AND idx <= :upto
       AND (:types IS NULL OR type IN (SELECT value FROM json_each(:types)))
     ORDER BY idx LIMIT :limit)
SELECT count(*),
       CASE WHEN sum(length(data)) <= :bytes THEN
            (SELECT group_concat(idx || char(31) || type || char(31) || data, char(30)) FROM found) END
  FROM found;

-- page_cut: the same, up to the event with which they are too large; the running sum costs three times the rest
SELECT group_concat(CASE WHEN size - length(data) < :bytes
                         THEN idx || char(31) || type || char(31) || data END, char(30))
  FROM (SELECT idx, type, data, sum(length(data)) OVER (ORDER BY idx ROWS UNBOUNDED PRECEDING) AS size
          FROM (SELECT idx, type, data FROM events
                 WHERE job = :job AND idx > :after AND idx <= :upto
                   AND (:types IS NULL OR type IN (SELECT value FROM json_each(:types)))
                 ORDER BY idx LIMIT :limit));

-- first_event: the oldest of one type that is kept
SELECT idx, data FROM events WHERE job = :job AND type = :type AND idx > :trimmed ORDER BY idx LIMIT 1;

-- oldest_of_types: the lowest index that is kept of some types
SELECT idx FROM events WHERE job = :job AND type IN (SELECT value FROM json_each(:types)) ORDER BY idx LIMIT 1;

-- outcome_event: how a job has ended
SELECT type, data FROM events WHERE job = :job AND type IN ('job.result', 'job.error') AND idx >= :since;

-- next_restart: where the items of a job begin again, behind a place
SELECT min(idx) FROM restarts WHERE job = :job AND idx > :after;

-- insert_restart: a new attempt's items begin at 0
INSERT INTO restarts (job, idx) VALUES (:job, :idx);

-- insert_hold: items are kept for one reader until it was sent them
INSERT INTO holds (job, sent, until) VALUES (:job, -1, :until);

-- renew_hold: its reader has come, or gone, and has had all up to there; it has until then to come back
UPDATE holds SET sent = max(sent, :sent), until = :until WHERE job = :job;

-- renew_holds: the same for all whose readers are connected
UPDATE holds SET until = :until WHERE job IN (SELECT value FROM json_each(:jobs));

-- pause_hold: is the generator held back until its reader has caught up?
UPDATE holds SET paused = :paused WHERE job = :job;

-- end_hold: items are kept as for everybody
DELETE FROM holds WHERE job = :job;

-- restart_holds: a new control plane gives every reader a full term to come back
UPDATE holds SET until = :until;

-- put_off_holds: the control plane itself was away, and no reader could come back
UPDATE holds SET until = until + :by;

-- lapsed_holds: those whose reader has not come back
SELECT jobs.id FROM holds JOIN jobs ON jobs.seq = holds.job WHERE holds.until <= :now LIMIT 500;

-- held_job: a held job with the attempt that may wait for its reader
SELECT jobs.seq, versions.stream_window, leases.token, containers.agent_id, holds.paused, holds.until
  FROM jobs JOIN versions ON versions.id = jobs.version JOIN holds ON holds.job = jobs.seq
  LEFT JOIN leases ON leases.job = jobs.seq LEFT JOIN containers ON containers.id = leases.container_id
 WHERE jobs.id = :id;
