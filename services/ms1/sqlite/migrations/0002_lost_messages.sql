-- +goose Up
-- Lost messages, written when their session ends: at most the 4,096 given up
-- last. The column lost of sessions counts all.
CREATE TABLE lost_messages (
  session_id         INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE, -- the interaction it belongs to
  service1_timestamp TEXT    NOT NULL, -- when MS1 created the message
  reason             TEXT    NOT NULL, -- why MS1 gave it up
  PRIMARY KEY (session_id, service1_timestamp)
) WITHOUT ROWID;
