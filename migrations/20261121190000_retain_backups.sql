-- A backup that is being deleted: marked before anything of it goes, and from then on neither listed nor restored. Its
-- row goes when its snapshot is gone.
ALTER TABLE backups ADD COLUMN deleting_at timestamptz,
    ADD CONSTRAINT backups_pinned_are_not_deleted CHECK (deleting_at IS NULL OR NOT pinned);
CREATE INDEX backups_being_deleted ON backups (project_id, deleting_at, backup_id) WHERE deleting_at IS NOT NULL;
