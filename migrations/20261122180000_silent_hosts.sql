-- Whether a host has said nothing for so long that what it last said of its projects is not to be counted on. A host speaks
-- every few seconds; ten minutes are longer than a restart.
CREATE FUNCTION is_silent(host hosts) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN coalesce((host).last_seen, (host).created_at) < now() - interval '10 minutes';
