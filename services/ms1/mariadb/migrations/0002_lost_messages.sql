-- +goose NO TRANSACTION
-- +goose Up
CREATE TABLE IF NOT EXISTS lost_messages (
  session_id         BIGINT       NOT NULL COMMENT 'the interaction that the message belongs to',
  service1_timestamp DATETIME(6)  NOT NULL COMMENT 'when MS1 created the message, UTC',
  reason             VARCHAR(100) NOT NULL COMMENT 'why MS1 gave it up',
  PRIMARY KEY (session_id, service1_timestamp),
  CONSTRAINT lost_messages_of_session FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COMMENT='lost messages, written when their session ends: at most the 4,096 given up last; sessions.lost counts all';
