-- What people look for first. `docker compose -f compose/compose.yaml run --rm inspect` prints it; any client can run it.

-- Sessions: the figures of the summary, and the rows that there are.
SELECT s.id, s.started_at, s.ended_at, s.in_flight, s.generated, s.stored, s.resent, s.duplicates, s.lost, s.end_reason,
       COUNT(m.session_id) AS 'rows'
FROM sessions s LEFT JOIN messages m ON m.session_id = s.id
GROUP BY s.id ORDER BY s.id DESC LIMIT 10;

-- The hops of the last session. A negative one comes from two clocks that disagree.
WITH last AS (
  SELECT * FROM messages WHERE session_id = (SELECT MAX(id) FROM sessions)
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

-- The slowest messages of the last session, and their traces in Jaeger.
SELECT session_id, service1_timestamp, service2_timestamp, service3_timestamp, end_timestamp,
       LEFT(SHA2(CONCAT('tricycle/1/', session_id, '/', DATE_FORMAT(service1_timestamp, '%Y-%m-%dT%H:%i:%s.%fZ')), 256), 32) AS trace_id
FROM messages WHERE session_id = (SELECT MAX(id) FROM sessions)
ORDER BY TIMESTAMPDIFF(MICROSECOND, service1_timestamp, end_timestamp) DESC LIMIT 10;
