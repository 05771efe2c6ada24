-- +goose Up
-- Every time is text as on the wire: RFC 3339, UTC, six digits and Z.
CREATE TABLE sessions (
  id               INTEGER PRIMARY KEY AUTOINCREMENT, -- number of the interaction; never used twice
  started_at       TEXT    NOT NULL, -- when GET /start was accepted
  ended_at         TEXT,             -- when the session had drained; NULL: it is open
  interval_seconds INTEGER NOT NULL, -- how long messages are generated, seconds
  in_flight        INTEGER NOT NULL, -- most messages in flight at once
  generated        INTEGER,          -- messages generated; NULL: unknown or open
  stored           INTEGER,          -- messages with a row in messages; NULL: open
  resent           INTEGER,          -- sends of a message beyond its first; NULL: unknown or open
  duplicates       INTEGER,          -- messages that returned again; NULL: unknown or open
  lost             INTEGER,          -- generated - stored; NULL: unknown or open
  end_reason       TEXT              -- interval elapsed, stopped, shutdown or interrupted; NULL: open
);

CREATE TABLE messages (
  session_id         INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE, -- the interaction it belongs to
  service1_timestamp TEXT    NOT NULL, -- when MS1 created the message
  service2_timestamp TEXT    NOT NULL, -- when MS2 read it from the WebSocket
  service3_timestamp TEXT    NOT NULL, -- when MS3 fetched it from the topic
  end_timestamp      TEXT    NOT NULL, -- when it returned to MS1
  PRIMARY KEY (session_id, service1_timestamp)
) WITHOUT ROWID;
