-- Return the job of an execution to the front of its queue.
-- KEYS: 1 record, 2 lease
-- ARGV: 1 execution id, 2 change of the attempt count, 3 whether an existing lease prevents it ('1' or '0'),
--       4 job id, then RQ's commands for `run_commands`
-- Returns 'queued', 'lost' (the execution no longer has the job), 'leased', or 'cancel' (cancellation was requested).
local state, execution, cancel_requested =
  unpack(redis.call('HMGET', KEYS[1], 'state', 'execution_id', 'cancel_requested'))
if state ~= RUNNING or execution ~= ARGV[1] then return 'lost' end
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[2]) == 1 then return 'leased' end
if cancel_requested == 'true' then return 'cancel' end
redis.call('HSET', KEYS[1], 'state', QUEUED, 'execution_id', 'null', 'phase', 'null', 'returned', 'true')
redis.call('HINCRBY', KEYS[1], 'attempt', ARGV[2])
redis.call('DEL', KEYS[2])
drop_preview(ARGV[4])
index_state(ARGV[4], QUEUED)
emit(ARGV[4], 'progress')
run_commands(5)
return 'queued'
