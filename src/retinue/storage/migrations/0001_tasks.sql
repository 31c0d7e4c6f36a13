-- Version 1: teams, the event feed, nodes, tasks. Times are microseconds since 1970 on the database's clock.
{postgres:CREATE OR REPLACE FUNCTION retinue_now() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint';
}
-- `position` is the last event's; events up to `start` are pruned; `chain` is the last group's hash link.
CREATE TABLE teams (
  id text PRIMARY KEY,
  name text NOT NULL UNIQUE,
  created_at bigint NOT NULL,
  position bigint NOT NULL DEFAULT 0,
  start bigint NOT NULL DEFAULT 0,
  chain text NOT NULL DEFAULT ''
);
CREATE TABLE events (
  team text NOT NULL,
  position bigint NOT NULL,
  type text NOT NULL,
  at bigint NOT NULL,
  subject text NOT NULL,
  node text,
  actor text NOT NULL,
  data text NOT NULL,
  PRIMARY KEY (team, position)
){sqlite: WITHOUT ROWID};
-- One hash link per group: digest = H(the previous link's digest, the events first..last).
CREATE TABLE links (
  team text NOT NULL,
  last bigint NOT NULL,
  first bigint NOT NULL,
  digest text NOT NULL,
  at bigint NOT NULL,
  PRIMARY KEY (team, last)
){sqlite: WITHOUT ROWID};
CREATE TABLE denials (
  team text NOT NULL,
  who text NOT NULL,
  what text NOT NULL,
  minute bigint NOT NULL,
  times bigint NOT NULL,
  PRIMARY KEY (team, who, what, minute)
);
CREATE INDEX denials_minute ON denials (minute);
CREATE TABLE nodes (
  id text PRIMARY KEY,
  team text NOT NULL,
  name text NOT NULL,
  status text NOT NULL,
  boot text NOT NULL,
  workers bigint NOT NULL,
  labels text NOT NULL,
  capabilities text NOT NULL,
  resources text NOT NULL,
  created_at bigint NOT NULL,
  seen_at bigint NOT NULL,
  UNIQUE (team, name)
);
-- A foreground client's session: its tasks are cancelled when it ends.
CREATE TABLE sessions (
  id text PRIMARY KEY,
  team text NOT NULL,
  boot text NOT NULL,
  lease_at bigint NOT NULL
);
-- One line per requirement set that has or had tasks waiting.
CREATE TABLE queues (
  id text PRIMARY KEY,
  team text NOT NULL,
  labels text NOT NULL,
  requires text NOT NULL,
  node text,
  resources text NOT NULL
);
CREATE INDEX queues_team ON queues (team);
-- Cold and wide: written when a task is made, when it ends, and when something goes wrong.
-- While a `running` row exists, that row says the status.
CREATE TABLE tasks (
  id text PRIMARY KEY,
  team text NOT NULL,
  status text NOT NULL,
  queue text NOT NULL,
  rank bigint NOT NULL,
  fence bigint NOT NULL DEFAULT 0,
  waiting_on bigint NOT NULL DEFAULT 0,
  failures bigint NOT NULL DEFAULT 0,
  losses bigint NOT NULL DEFAULT 0,
  patience bigint NOT NULL DEFAULT 0,
  parent text,
  session text,
  spec text NOT NULL,
  created_by text NOT NULL,
  created_at bigint NOT NULL,
  ready_at bigint NOT NULL,
  finished_at bigint,
  attempt text,
  exit_code bigint,
  code text,
  error text,
  result text
);
CREATE INDEX tasks_team ON tasks (team, status, id);
CREATE INDEX tasks_parent ON tasks (parent) WHERE parent IS NOT NULL;
CREATE INDEX tasks_session ON tasks (session) WHERE session IS NOT NULL;
-- The narrow row of a task that may be claimed; deleted at its claim.
CREATE TABLE ready (
  queue text NOT NULL,
  rank bigint NOT NULL,
  id text NOT NULL,
  fence bigint NOT NULL,
  PRIMARY KEY (queue, rank, id)
){sqlite: WITHOUT ROWID};
-- The narrow row of a task that somebody holds: its lease. Reaped when `reap_at` = lease + patience has passed.
CREATE TABLE running (
  id text PRIMARY KEY,
  fence bigint NOT NULL,
  team text NOT NULL,
  node text NOT NULL,
  boot text NOT NULL,
  attempt text NOT NULL,
  status text NOT NULL,
  claimed_at bigint NOT NULL,
  started_at bigint,
  reap_at bigint NOT NULL,
  patience bigint NOT NULL
){sqlite: WITHOUT ROWID}{postgres: WITH (fillfactor = 70)};
CREATE INDEX running_reap ON running (reap_at);
CREATE INDEX running_node ON running (node);
CREATE TABLE attempts (
  task text NOT NULL,
  fence bigint NOT NULL,
  id text NOT NULL,
  node text NOT NULL,
  status text NOT NULL,
  digest text,
  claimed_at bigint NOT NULL,
  started_at bigint,
  ended_at bigint NOT NULL,
  exit_code bigint,
  code text,
  error text,
  PRIMARY KEY (task, fence)
){sqlite: WITHOUT ROWID};
CREATE TABLE edges (
  parent text NOT NULL,
  child text NOT NULL,
  policy text NOT NULL,
  PRIMARY KEY (parent, child)
){sqlite: WITHOUT ROWID};
CREATE INDEX edges_child ON edges (child);
CREATE TABLE timers (
  due_at bigint NOT NULL,
  task text NOT NULL,
  kind text NOT NULL,
  PRIMARY KEY (due_at, task, kind)
){sqlite: WITHOUT ROWID};
CREATE TABLE progress (
  task text PRIMARY KEY,
  fence bigint NOT NULL,
  data text NOT NULL,
  at bigint NOT NULL
);
CREATE TABLE logs (
  attempt text NOT NULL,
  stream text NOT NULL,
  start bigint NOT NULL,
  size bigint NOT NULL,
  at bigint NOT NULL,
  digest text,
  data {sqlite:blob}{postgres:bytea},
  PRIMARY KEY (attempt, stream, start)
);
CREATE INDEX logs_at ON logs (at);
CREATE INDEX logs_digest ON logs (digest) WHERE digest IS NOT NULL;
CREATE TABLE idempotency (
  team text NOT NULL,
  principal text NOT NULL,
  route text NOT NULL,
  key text NOT NULL,
  body text NOT NULL,
  answer text NOT NULL,
  at bigint NOT NULL,
  PRIMARY KEY (team, principal, route, key)
);
CREATE INDEX idempotency_at ON idempotency (at);
CREATE TABLE counts (
  team text NOT NULL,
  status text NOT NULL,
  tasks bigint NOT NULL,
  PRIMARY KEY (team, status)
){sqlite: WITHOUT ROWID};
CREATE INDEX tasks_finished ON tasks (finished_at) WHERE finished_at IS NOT NULL;
