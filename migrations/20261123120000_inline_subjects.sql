-- As it was, of functions that are as immutable as it says to be: only then is it a part of the statement that uses it, and
-- not planned and run by itself for each row.
CREATE OR REPLACE FUNCTION operation_subject(scope_type text, scope_id uuid, operation uuid) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 'persist.' || scope_type || coalesce('-' || scope_id::text, '') || '.lro.' || operation::text;
