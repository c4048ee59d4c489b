-- Upkeep is due until it is done, and not only asked for. `times` counts what was done from now on.

ALTER TABLE project_upkeep ADD COLUMN done_at timestamptz;
UPDATE project_upkeep SET done_at = asked_at WHERE asked_at > '-infinity';
COMMENT ON COLUMN project_upkeep.times IS 'how often it was done';
