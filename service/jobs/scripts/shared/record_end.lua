-- The end of a job and the deletion of its record.

-- Delete the record of a job that no worker has, or may have any more. Maintenance deletes its files, as soon as a worker
-- that does not know it yet has stopped; RQ's record expires, because its worker may have been killed.
local function erase(id)
  unindex(id)
  redis.call('DEL', RECORD .. id, PREVIEW .. id)
  redis.call('EXPIRE', RQ_RECORD .. id, RQ_RECORD_TTL_S)
  redis.call('ZREM', CLEAN_UP, id)
  redis.call('SADD', ACTIVE, id)
end

-- Write the final fields of a job and publish the event. If the client has deleted it while it ran, it ends as cancelled,
-- and its record is deleted. `fields`: names and values, which include the state.
local function finish(id, fields, outbox, listeners, oldest)
  local record = RECORD .. id
  local is_deleted = redis.call('HGET', record, 'delete_requested') == 'true'
  local state
  for i = 1, #fields, 2 do
    if is_deleted and fields[i] == 'state' then fields[i + 1] = CANCELLED end
    if is_deleted and (fields[i] == 'output' or fields[i] == 'error') then fields[i + 1] = 'null' end
    if fields[i] == 'state' then state = fields[i + 1] end
  end
  redis.call('HSET', record, unpack(fields))
  drop_preview(id)
  count_usage(record, state)
  publish(record, outbox, listeners, oldest)
  if is_deleted then return erase(id) end -- pages have been informed when the client deleted it
  index_state(id, state)
  emit(id, 'ended')
end
