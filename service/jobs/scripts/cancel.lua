-- Cancel a queued job, or request the cancellation of a running one. A job that has ended stays as it is.
-- KEYS: 1 record, 2 RQ's record, 3 outbox, 4 owners with webhook endpoints
-- ARGV: 1 job id, 2 now, 3 oldest outbox entry to keep
local state = redis.pcall('HGET', KEYS[1], 'state')
if state == QUEUED then
  if leave(queue_of(KEYS[1]), ARGV[1]) then redis.call('DEL', KEYS[2]) end
  finish(ARGV[1], {'state', CANCELLED, 'completed_at', ARGV[2], 'cancel_requested', 'true'}, KEYS[3], KEYS[4], ARGV[3])
elseif state == RUNNING then
  redis.call('HSET', KEYS[1], 'cancel_requested', 'true')
  emit(ARGV[1], 'progress')
end
