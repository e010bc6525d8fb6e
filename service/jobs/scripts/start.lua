-- Give a queued job and a lease on it to an execution. A repeated call renews the lease.
-- KEYS: 1 record, 2 lease
-- ARGV: 1 execution id, 2 now, 3 lease in ms, 4 job id
-- Returns 1 if the execution has the job, else 0.
local state, execution = unpack(redis.call('HMGET', KEYS[1], 'state', 'execution_id'))
if state == QUEUED then
  redis.call('HSET', KEYS[1], 'state', RUNNING, 'execution_id', ARGV[1])
  redis.call('HSETNX', KEYS[1], 'started_at', ARGV[2])
  redis.call('HINCRBY', KEYS[1], 'attempt', 1)
  redis.call('HSET', KEYS[1], 'gpu_added_ms', 0)
  index_state(ARGV[4], RUNNING)
  emit(ARGV[4], 'progress')
elseif not (state == RUNNING and execution == ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
return 1
