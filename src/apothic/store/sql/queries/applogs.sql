-- container_app: whose container it is, and how many of its own lines are stored
SELECT containers.agent_id, functions.app, functions.name AS function, container_lines.said
  FROM containers JOIN versions ON versions.id = containers.version
  JOIN functions ON functions.id = versions.function_id
  LEFT JOIN container_lines ON container_lines.container_id = containers.id
 WHERE containers.id = :id;

-- newest_app_line: the highest number that is taken
SELECT max(idx) FROM app_lines WHERE app = :app;

-- oldest_app_line: all below it are gone
SELECT min(idx) FROM app_lines WHERE app = :app;

-- insert_app_line: a line that belongs to no job
INSERT INTO app_lines (app, idx, function, container_id, stream, text, at, cont) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- trim_app_lines: an app keeps the newest
DELETE FROM app_lines WHERE app = :app AND idx <= :upto;

-- note_said: so many lines of a container are stored
INSERT INTO container_lines (container_id, said) VALUES (:id, :said)
ON CONFLICT (container_id) DO UPDATE SET said = max(said, excluded.said);

-- app_lines: a page of them, oldest first
SELECT * FROM app_lines WHERE app = :app AND idx > :after AND (:function IS NULL OR function = :function)
 ORDER BY idx LIMIT :limit;
