-- Put a restored job at the end of its queue, unless it is in it or does not wait.
-- KEYS: 1 record, 2 queue
-- ARGV: 1 job id, then RQ's commands for `run_commands`
-- Returns 1 if it was enqueued, else 0.
if redis.pcall('HGET', KEYS[1], 'state') ~= QUEUED then return 0 end
if redis.call('LPOS', KEYS[2], ARGV[1]) then return 0 end
local owner = decode(redis.call('HGET', KEYS[1], 'owner'))
if type(owner) == 'string' then redis.call('SADD', 'ivm:waiting:' .. owner, ARGV[1]) end
run_commands(2)
return 1
