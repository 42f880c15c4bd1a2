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
-- Of those that are here already only how they stand is known.
INSERT INTO deployment_events (deployment_id, idx, status, data)
SELECT id, 0, now, json_object('status', now, 'at', created_at)
  FROM (SELECT id, created_at, iif(status = 'ready', 'stopped', status) AS now FROM deployments);
