-- take_indices: give out the next n indices of a job
UPDATE jobs SET next_index = next_index + :n WHERE seq = :job RETURNING next_index;

-- insert_event: one event under an index that was given out
INSERT INTO events (job, idx, type, attempt, data) VALUES (?, ?, ?, ?, ?);

-- window: what the job keeps of one type
SELECT kept, bytes, lost, trimmed FROM windows WHERE job = :job AND type = :type;

-- set_window: the same, after an append and its trim
INSERT INTO windows (job, type, kept, bytes, lost, trimmed) VALUES (:job, :type, :kept, :bytes, :lost, :trimmed)
ON CONFLICT (job, type) DO UPDATE
   SET kept = excluded.kept, bytes = excluded.bytes, lost = excluded.lost, trimmed = excluded.trimmed;

-- oldest_events: the oldest of one type that are still kept
SELECT idx, length(data) AS bytes FROM events
 WHERE job = :job AND type = :type AND idx > :trimmed ORDER BY idx LIMIT :n;

-- trim_events: let go of the oldest of one type
DELETE FROM events WHERE job = :job AND type = :type AND idx > :trimmed AND idx <= :upto;

-- log_lines: a page of a job's retained output
SELECT idx, attempt, data FROM events
 WHERE job = :job AND type = 'job.log' AND idx > :after_index ORDER BY idx LIMIT :limit;

-- log_line_at: where a line stands in the job's index
SELECT idx FROM events
 WHERE job = :job AND type = 'job.log' AND json_extract(data, '$.line') <= :line ORDER BY idx DESC LIMIT 1;

-- last_lines: the end of a job's output, newest first
SELECT data FROM events WHERE job = :job AND type = 'job.log' ORDER BY idx DESC LIMIT :limit;
