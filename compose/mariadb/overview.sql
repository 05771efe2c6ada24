-- The overview that `docker compose run --rm inspect` prints. Any client can run it.
-- It reads at most the 20,000 newest messages.

-- Sessions: the figures of the summary, and the number of rows among the newest messages.
WITH newest AS (
  SELECT session_id FROM messages ORDER BY session_id DESC, service1_timestamp DESC LIMIT 20000
), counted AS (
  SELECT session_id, COUNT(*) AS n FROM newest GROUP BY session_id
), bound AS (
  SELECT COUNT(*) = 20000 AS reached, MIN(session_id) AS oldest FROM newest
)
SELECT s.id, s.started_at, s.ended_at, s.in_flight, s.generated, s.stored, s.resent, s.duplicates, s.lost, s.end_reason,
       CASE WHEN b.reached AND s.id < b.oldest THEN 'not counted'
            WHEN b.reached AND s.id = b.oldest THEN CONCAT(c.n, ' or more')
            ELSE COALESCE(c.n, 0) END AS 'rows'
FROM (SELECT * FROM sessions ORDER BY id DESC LIMIT 10) s CROSS JOIN bound b LEFT JOIN counted c ON c.session_id = s.id
ORDER BY s.id DESC;

-- The hops of the last session's newest messages. A hop is negative if two clocks disagree.
WITH last AS (
  SELECT * FROM messages WHERE session_id = (SELECT MAX(id) FROM sessions) ORDER BY service1_timestamp DESC LIMIT 20000
), hops AS (
  SELECT 1 AS n, 'ms1 to ms2' AS hop, TIMESTAMPDIFF(MICROSECOND, service1_timestamp, service2_timestamp) AS us FROM last
  UNION ALL SELECT 2, 'ms2 to ms3', TIMESTAMPDIFF(MICROSECOND, service2_timestamp, service3_timestamp) FROM last
  UNION ALL SELECT 3, 'ms3 to ms1', TIMESTAMPDIFF(MICROSECOND, service3_timestamp, end_timestamp) FROM last
  UNION ALL SELECT 4, 'whole round', TIMESTAMPDIFF(MICROSECOND, service1_timestamp, end_timestamp) FROM last
), ranked AS (
  SELECT n, hop, us, ROW_NUMBER() OVER (PARTITION BY n ORDER BY us) AS place, COUNT(*) OVER (PARTITION BY n) AS total FROM hops
)
SELECT hop,
       MAX(IF(place = CEIL(0.50 * total), us, NULL)) / 1000 AS p50_ms,
       MAX(IF(place = CEIL(0.95 * total), us, NULL)) / 1000 AS p95_ms,
       MAX(IF(place = CEIL(0.99 * total), us, NULL)) / 1000 AS p99_ms,
       MAX(us) / 1000 AS max_ms
FROM ranked GROUP BY n, hop ORDER BY n;

-- The slowest of the last session's newest messages, and their traces in Jaeger.
WITH last AS (
  SELECT * FROM messages WHERE session_id = (SELECT MAX(id) FROM sessions) ORDER BY service1_timestamp DESC LIMIT 20000
)
SELECT session_id, service1_timestamp, service2_timestamp, service3_timestamp, end_timestamp,
       LEFT(SHA2(CONCAT('tricycle/1/', session_id, '/', DATE_FORMAT(service1_timestamp, '%Y-%m-%dT%H:%i:%s.%fZ')), 256), 32) AS trace_id
FROM last ORDER BY TIMESTAMPDIFF(MICROSECOND, service1_timestamp, end_timestamp) DESC LIMIT 10;
