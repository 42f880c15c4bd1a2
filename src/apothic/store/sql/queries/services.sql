-- insert_service: a version that answers HTTP
INSERT INTO services (version, port)
SELECT id, :port FROM versions WHERE deployment_id = :deployment_id AND function_id = :function_id;

-- live_services: what can be asked now
SELECT services.version, versions.deployment_id, versions.spec, deployments.app
  FROM apps JOIN deployments ON deployments.id = apps.live
  JOIN versions ON versions.deployment_id = deployments.id
  JOIN services ON services.version = versions.id
 ORDER BY services.version;

-- service_containers: every one that has told where it answers, also of versions that are live no longer
SELECT containers.id, containers.agent_id, containers.version, addresses.address, addresses.secret,
       containers.state = 'ready' AND agents.connected AS usable
  FROM addresses JOIN containers ON containers.id = addresses.container_id
  JOIN agents ON agents.id = containers.agent_id
 WHERE addresses.address <> ''
 ORDER BY containers.id;

-- want_containers: how many the gateway wants now
UPDATE services SET wanted = :wanted WHERE version = :version;

-- forget_demands: whoever wanted them has to say so anew (:app: of that app alone)
UPDATE services SET wanted = 0
 WHERE wanted > 0
   AND (:app IS NULL
        OR version IN (SELECT versions.id FROM versions JOIN deployments ON deployments.id = versions.deployment_id
                        WHERE deployments.app = :app));

-- service_idle: since when a service's container has had no request (NULL: it has)
UPDATE containers SET idle_since = :since
 WHERE id = :id AND EXISTS (SELECT 1 FROM addresses WHERE addresses.container_id = containers.id);

-- insert_address: a service's container is told to start
INSERT INTO addresses (container_id, secret) VALUES (:id, :secret);

-- set_address: a service's container tells where it answers; sockets and ports of this machine are for agents of this
-- data directory (:local is their key), since whoever could name any would lead the gateway anywhere
UPDATE addresses SET address = :address
 WHERE container_id = :id
   AND (:address GLOB 'relay:*'
        OR EXISTS (SELECT 1 FROM containers JOIN agent_keys ON agent_keys.agent_id = containers.agent_id
                    WHERE containers.id = :id AND agent_keys.key_id = :local));

-- services_of_agent: its containers that answer requests
SELECT container_id FROM addresses JOIN containers ON containers.id = container_id
 WHERE agent_id = :agent_id AND state = 'ready';

-- forget_proofs: a deployment that is started again; what is ready now has shown already that it starts
UPDATE services
   SET proved = EXISTS (SELECT 1 FROM containers WHERE containers.version = services.version AND state = 'ready')
 WHERE version IN (SELECT id FROM versions WHERE deployment_id = :id);

-- note_proof: a container of this version is ready
UPDATE services SET proved = 1 WHERE version = :version;

-- unproved_service: one of a deployment that has yet to show that it starts
SELECT services.version FROM services JOIN versions ON versions.id = services.version
 WHERE versions.deployment_id = :id AND services.proved = 0;

-- live_service: is there any?
SELECT services.version FROM apps JOIN versions ON versions.deployment_id = apps.live
  JOIN services ON services.version = versions.id LIMIT 1;

-- demands: versions of live deployments of which containers are wanted, whatever runs
SELECT versions.id, versions.slots, versions.per_container, versions.max_containers,
       versions.cpu, versions.memory_mb, versions.gpu, deployments.app, services.port, services.wanted
  FROM services JOIN versions ON versions.id = services.version
  JOIN deployments ON deployments.id = versions.deployment_id
 WHERE services.wanted > 0 AND deployments.status = 'live';

-- serving_container: is there such a container of a service?
SELECT container_id FROM addresses WHERE container_id = :id;
