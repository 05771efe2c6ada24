-- Deletes sessions that ended more than @days days ago, with their messages. Without @days nothing is deleted.
--   docker compose run --rm inspect --init-command='SET @days = 30' -e 'source /inspect/delete_old_sessions.sql'
-- The number of a deleted session is never reused.
DELETE FROM sessions WHERE ended_at < UTC_TIMESTAMP(6) - INTERVAL @days DAY;
SELECT ROW_COUNT() AS sessions_deleted;
