-- The registry holds a checkpoint to 64 KiB as compact JSON. jsonb writes the same with spaces and with every digit of numbers like
-- 1e300, up to 52 times as long: what was accepted must not be refused here, beside the heartbeats of others.
ALTER TABLE long_running_operations
    DROP CONSTRAINT operations_checkpoint_size,
    ADD CONSTRAINT operations_checkpoint_size CHECK (octet_length(checkpoint::text) <= 4194304);
