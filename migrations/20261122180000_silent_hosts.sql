-- Whether a host has said nothing of its projects for so long that what it last said is not to be counted on: `load_seen` comes
-- with that, `last_seen` with whatever else its services say. It speaks every few seconds; ten minutes are longer than a restart.
CREATE FUNCTION is_silent(host hosts) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN coalesce((host).load_seen, (host).created_at) < now() - interval '10 minutes';
