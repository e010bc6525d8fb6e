-- Return the job of an execution to the front of its queue.
-- KEYS: 1 record, 2 lease
-- ARGV: 1 state running, 2 execution id, 3 state queued, 4 change of the attempt count,
--       5 whether an existing lease prevents it ('1' or '0'), then RQ's commands for `run_commands`
-- Returns 'queued', 'lost' (the execution no longer has the job), 'leased', or 'cancel' (cancellation was requested).
local state, execution, cancel_requested =
  unpack(redis.call('HMGET', KEYS[1], 'state', 'execution_id', 'cancel_requested'))
if state ~= ARGV[1] or execution ~= ARGV[2] then return 'lost' end
if ARGV[5] == '1' and redis.call('EXISTS', KEYS[2]) == 1 then return 'leased' end
if cancel_requested == 'true' then return 'cancel' end
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'execution_id', 'null', 'phase', 'null')
redis.call('HINCRBY', KEYS[1], 'attempt', ARGV[4])
redis.call('DEL', KEYS[2])
run_commands(6)
return 'queued'
