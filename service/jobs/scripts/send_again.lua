-- Put a queued job that is missing from its queue back into it.
-- KEYS: 1 record, 2 queue, 3 RQ's list of jobs that a worker has taken and not started. A job whose worker was killed
--       in between stays in that list forever.
-- ARGV: 1 job id, then RQ's commands for `run_commands`
-- Returns 1 if it was missing, else 0.
if redis.call('HGET', KEYS[1], 'state') ~= QUEUED then return 0 end
if redis.call('LPOS', KEYS[2], ARGV[1]) then return 0 end
redis.call('LREM', KEYS[3], 0, ARGV[1])
redis.call('HSET', KEYS[1], 'returned', 'true')
run_commands(2)
return 1
