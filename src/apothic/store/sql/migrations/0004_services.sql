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
