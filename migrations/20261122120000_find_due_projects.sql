-- "Null or past" is no comparison that an index answers: each pass of the scheduler looked at every project. This one is.

DROP INDEX projects_by_backup_due;
CREATE INDEX projects_by_backup_due ON projects ((coalesce(backup_due_at, '-infinity')));
