-- Put a queued job that is missing from its queue back into it.
-- KEYS: 1 record, 2 queue, 3 RQ's list of jobs that a worker has taken and not started. A job whose worker was killed
--       in between stays in that list forever.
-- ARGV: 1 state queued, 2 job id, then RQ's commands for `run_commands`
-- Returns 1 if it was missing, else 0.
if redis.call('HGET', KEYS[1], 'state') ~= ARGV[1] then return 0 end
if redis.call('LPOS', KEYS[2], ARGV[2]) then return 0 end
redis.call('LREM', KEYS[3], 0, ARGV[2])
run_commands(3)
return 1
