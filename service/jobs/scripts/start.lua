-- Give a queued job and a lease on it to an execution. A repeated call renews the lease.
-- KEYS: 1 record, 2 lease
-- ARGV: 1 state queued, 2 state running, 3 execution id, 4 now, 5 lease in ms
-- Returns 1 if the execution has the job, else 0.
local state, execution = unpack(redis.call('HMGET', KEYS[1], 'state', 'execution_id'))
if state == ARGV[1] then
  redis.call('HSET', KEYS[1], 'state', ARGV[2], 'execution_id', ARGV[3])
  redis.call('HSETNX', KEYS[1], 'started_at', ARGV[4])
  redis.call('HINCRBY', KEYS[1], 'attempt', 1)
elseif not (state == ARGV[2] and execution == ARGV[3]) then
  return 0
end
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[5])
return 1
