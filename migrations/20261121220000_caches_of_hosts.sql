-- What a host last said of its cache of metadata, in bytes.
ALTER TABLE hosts
    ADD COLUMN cache_bytes bigint,
    ADD COLUMN cache_limit_bytes bigint;
