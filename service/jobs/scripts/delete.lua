-- Delete a job. A queued one is cancelled before; a running one is no longer visible, and its record is deleted when its
-- worker has stopped.
-- KEYS: 1 record, 2 index of the owner, 3 outbox, 4 owners with webhook endpoints
-- ARGV: 1 job id, 2 now, 3 oldest outbox entry to keep, 4 '1' = at once in any state, because the record is damaged,
--       5 '1' = only if the job has ended
-- Returns 'deleted', 'stopping', or nil if there is nothing to delete.
local state = redis.pcall('HGET', KEYS[1], 'state')
if redis.call('EXISTS', KEYS[1]) == 0 or (ARGV[5] == '1' and not ENDED[state] and ARGV[4] ~= '1') then return nil end
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[4] == '1' then
  leave_all(ARGV[1])
elseif state == QUEUED then
  leave(queue_of(KEYS[1]), ARGV[1])
  finish(ARGV[1], {'state', CANCELLED, 'completed_at', ARGV[2], 'cancel_requested', 'true'}, KEYS[3], KEYS[4], ARGV[3])
elseif state == RUNNING then
  redis.call('HSET', KEYS[1], 'cancel_requested', 'true', 'delete_requested', 'true')
  unindex(ARGV[1])
  emit(ARGV[1], 'deleted')
  return 'stopping'
end
emit(ARGV[1], 'deleted')
erase(ARGV[1])
return 'deleted'
