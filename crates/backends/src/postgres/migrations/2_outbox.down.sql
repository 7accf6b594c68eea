DROP VIEW outbox_events;
DROP TABLE outbox_relay;
DROP TABLE outbox_refused;
DROP TABLE outbox;
