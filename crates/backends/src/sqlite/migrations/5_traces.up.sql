-- Where in which trace an event happened, as `traceparent` says it.
ALTER TABLE outbox ADD COLUMN traceparent text;
