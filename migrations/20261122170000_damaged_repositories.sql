-- When a repository was last found to be damaged, apart from when somebody said that its project was edited.

ALTER TABLE projects ADD COLUMN damaged_at timestamptz;

CREATE OR REPLACE FUNCTION is_unsaved(project projects) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN (project).last_backup_at IS NULL
        OR coalesce(greatest((project).touched_at, (project).damaged_at) > (project).last_backup_at, false)
        OR (project).backup_host_id IS DISTINCT FROM (project).host_id
        OR (project).backup_generation IS DISTINCT FROM (project).last_changed_generation;

-- Whether a project has ever had anything that could be backed up, as far as is known.
CREATE FUNCTION has_been_used(project projects) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN (project).last_changed_generation <> 0 OR (project).touched_at IS NOT NULL OR (project).damaged_at IS NOT NULL;
