-- Cancel a queued job, or request the cancellation of a running one. A job that has ended stays as it is.
-- KEYS: 1 record, 2 queue, 3 RQ's record, 4 outbox, 5 owners with webhook endpoints
-- ARGV: 1 job id, 2 now, 3 oldest outbox entry to keep
-- Returns the record as HGETALL does.
local state = redis.call('HGET', KEYS[1], 'state')
if state == QUEUED then
  redis.call('HSET', KEYS[1], 'state', CANCELLED, 'completed_at', ARGV[2], 'cancel_requested', 'true')
  if redis.call('LREM', KEYS[2], 1, ARGV[1]) == 1 then redis.call('DEL', KEYS[3]) end
  publish(KEYS[1], KEYS[4], KEYS[5], ARGV[3])
elseif state == RUNNING then
  redis.call('HSET', KEYS[1], 'cancel_requested', 'true')
end
return redis.call('HGETALL', KEYS[1])
