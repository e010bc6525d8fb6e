-- Take back jobs that were created a moment ago and whose client gets an error. No event is published: it never knew them.
-- KEYS: 1 idempotency record
-- ARGV: the jobs' ids
for _, id in ipairs(ARGV) do
  local record = RECORD .. id
  local state = redis.pcall('HGET', record, 'state')
  if state == RUNNING then -- a worker has just started it
    redis.call('HSET', record, 'cancel_requested', 'true', 'delete_requested', 'true')
    unindex(id)
    emit(id, 'deleted')
  elseif state == QUEUED then
    leave(queue_of(record), id)
    emit(id, 'deleted')
    erase(id)
  end
end
if redis.pcall('HGET', KEYS[1], 'id') == ARGV[1] then redis.call('DEL', KEYS[1]) end
