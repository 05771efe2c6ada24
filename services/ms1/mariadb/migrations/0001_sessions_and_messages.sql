-- +goose NO TRANSACTION
-- MariaDB commits before and after each of these statements, so a start that
-- was cut short between them comes by here again: hence IF NOT EXISTS.

-- +goose Up
CREATE TABLE IF NOT EXISTS sessions (
  id               BIGINT       NOT NULL AUTO_INCREMENT COMMENT 'number of the interaction; never used twice',
  started_at       DATETIME(6)  NOT NULL     COMMENT 'when GET /start was accepted, UTC',
  ended_at         DATETIME(6)  DEFAULT NULL COMMENT 'when the session had drained, UTC; NULL: it is open',
  interval_seconds INT          NOT NULL     COMMENT 'how long messages are generated, seconds',
  in_flight        INT          NOT NULL     COMMENT 'most messages in flight at once',
  generated        BIGINT       DEFAULT NULL COMMENT 'messages generated; NULL: unknown or open',
  stored           BIGINT       DEFAULT NULL COMMENT 'messages with a row in messages; NULL: open',
  resent           BIGINT       DEFAULT NULL COMMENT 'sends of a message beyond its first; NULL: unknown or open',
  duplicates       BIGINT       DEFAULT NULL COMMENT 'messages that returned again; NULL: unknown or open',
  lost             BIGINT       DEFAULT NULL COMMENT 'generated - stored; NULL: unknown or open',
  end_reason       VARCHAR(32)  DEFAULT NULL COMMENT 'interval elapsed, stopped, shutdown or interrupted; NULL: open',
  PRIMARY KEY (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COMMENT='one row per interaction, from GET /start to its summary';

CREATE TABLE IF NOT EXISTS messages (
  session_id         BIGINT      NOT NULL COMMENT 'the interaction that the message belongs to',
  service1_timestamp DATETIME(6) NOT NULL COMMENT 'when MS1 created the message, UTC',
  service2_timestamp DATETIME(6) NOT NULL COMMENT 'when MS2 read it from the WebSocket, UTC',
  service3_timestamp DATETIME(6) NOT NULL COMMENT 'when MS3 fetched it from the topic, UTC',
  end_timestamp      DATETIME(6) NOT NULL COMMENT 'when it returned to MS1, UTC',
  PRIMARY KEY (session_id, service1_timestamp),
  CONSTRAINT messages_of_session FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COMMENT='one row per returned message';
