-- Deletes the sessions that ended more than @days days ago; their messages go with them. Without @days nothing is deleted.
--   docker compose -f compose/compose.yaml run --rm inspect --init-command='SET @days = 30' -e 'source /inspect/delete_old_sessions.sql'
-- A number is never given to a second session, whatever is deleted.
DELETE FROM sessions WHERE ended_at < UTC_TIMESTAMP(6) - INTERVAL @days DAY;
SELECT ROW_COUNT() AS sessions_deleted;
