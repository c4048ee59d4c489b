-- When a project is backed up next, by which policy, and whether anything would be lost.

ALTER TABLE accounts
    -- What differs from the policy of the fleet; see BackupPolicyChange in bus-messages.
    ADD COLUMN backup_policy jsonb;

ALTER TABLE projects
    -- What differs from the policy of its account.
    ADD COLUMN backup_policy jsonb,
    -- When somebody has last said that it was edited (project.touch).
    ADD COLUMN touched_at timestamptz,
    -- What its host said of its files when the newest backup froze them, and which host that was. Equal to
    -- last_changed_generation as long as nothing has changed since. Numbers of two hosts do not compare.
    ADD COLUMN backup_generation bigint,
    ADD COLUMN backup_host_id uuid REFERENCES hosts,
    -- When what is in no backup was first seen; null where all is.
    ADD COLUMN unsaved_since timestamptz,
    -- When the scheduler looks at it next; null until it has looked once.
    ADD COLUMN backup_due_at timestamptz,
    -- When the scheduler last asked for a backup.
    ADD COLUMN backup_scheduled_at timestamptz;
CREATE INDEX projects_by_backup_due ON projects (backup_due_at NULLS FIRST);

-- When each kind of upkeep of a project's repository was last asked for.
CREATE TABLE project_upkeep (
    project_id uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    kind text NOT NULL,
    asked_at timestamptz NOT NULL,
    PRIMARY KEY (project_id, kind)
);

ALTER TABLE hosts
    -- Shares of time in percent, as the host last said (pressure stall information, "some", ten seconds).
    ADD COLUMN memory_pressure real,
    ADD COLUMN io_pressure real,
    ADD COLUMN load_seen timestamptz;

-- Whether a project has something that is in no backup, as far as is known.
CREATE FUNCTION is_unsaved(project projects) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN (project).last_backup_at IS NULL
        OR coalesce((project).touched_at > (project).last_backup_at, false)
        OR (project).backup_host_id IS DISTINCT FROM (project).host_id
        OR (project).backup_generation IS DISTINCT FROM (project).last_changed_generation;
