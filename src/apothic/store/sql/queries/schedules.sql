-- insert_schedule: a version that is live now comes round by itself
INSERT INTO schedules (version, since, next_at) VALUES (:version, :since, :next_at) ON CONFLICT (version) DO NOTHING;

-- delete_schedule: a schedule that never comes round again
DELETE FROM schedules WHERE version = :version;

-- schedules_of_app: what its functions have still to come
SELECT versions.function_id, schedules.next_at
  FROM functions JOIN versions ON versions.function_id = functions.id JOIN schedules ON schedules.version = versions.id
 WHERE functions.app = :app;

-- end_schedules: the app's versions come round no more
DELETE FROM schedules
 WHERE version IN (SELECT versions.id FROM versions JOIN deployments ON deployments.id = versions.deployment_id
                    WHERE deployments.app = :app);

-- unscheduled: versions of live deployments that have no row
SELECT versions.id, versions.spec, versions.function_id FROM apps JOIN versions ON versions.deployment_id = apps.live
 WHERE NOT EXISTS (SELECT 1 FROM schedules WHERE schedules.version = versions.id);

-- schedules: all of them
SELECT schedules.*, versions.spec, versions.function_id FROM schedules JOIN versions ON versions.id = schedules.version;

-- next_tick: when the first schedule after an instant comes round; NULL when none does
SELECT min(next_at) FROM schedules WHERE next_at > :after;

-- due_schedules: those whose time has come, the longest due first
SELECT schedules.*, versions.spec, versions.function_id, versions.deployment_id
  FROM schedules JOIN versions ON versions.id = schedules.version
 WHERE next_at <= :now ORDER BY next_at LIMIT 500;

-- move_schedule: what comes next
UPDATE schedules SET next_at = :next_at WHERE version = :version;

-- insert_tick: one row a tick, whoever comes first
INSERT INTO ticks (function_id, at, outcome) VALUES (:function_id, :at, 'missed') ON CONFLICT (function_id, at) DO NOTHING;

-- set_tick: what became of it
UPDATE ticks SET outcome = :outcome, job = :job WHERE function_id = :function_id AND at = :at;

-- tick_unfinished: a job of an earlier tick that has not ended
SELECT jobs.id FROM ticks JOIN jobs ON jobs.id = ticks.job
 WHERE ticks.function_id = :function_id AND jobs.ended_at IS NULL LIMIT 1;

-- forget_ticks: all but the newest, and but one whose job has not ended, for the next tick asks for it
DELETE FROM ticks
 WHERE function_id = :function_id
   AND at <= (SELECT at FROM ticks WHERE function_id = :function_id ORDER BY at DESC LIMIT 1 OFFSET :kept)
   AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.id = ticks.job AND jobs.ended_at IS NULL);
