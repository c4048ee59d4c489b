-- `backup_scheduled_at` is when the scheduler asked for a backup that has not come about since: null once there is one.

UPDATE projects SET backup_scheduled_at = NULL WHERE last_backup_at >= backup_scheduled_at;
COMMENT ON COLUMN projects.backup_scheduled_at IS 'when a backup was asked for that has not come about since';
