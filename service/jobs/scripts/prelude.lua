-- Shared by the scripts of this folder; the loader puts this file in front of each of them.

-- Values as records store them, in JSON.
local QUEUED, RUNNING, FAILED, CANCELLED, LOW = '"queued"', '"running"', '"failed"', '"cancelled"', '"low"'
local ENDED = {['"completed"'] = true, [FAILED] = true, [CANCELLED] = true}

-- Keys and their prefixes, as in keys.py and rq_queues.py.
local RECORD, QUEUE, JOBS, INDEX, INDEXED = 'ivm:job:', 'rq:queue:gpu-', 'ivm:jobs', 'ivm:index:', 'ivm:index:complete'
local DELETED, KEEP_DELETED_S, ACTIVE, CLEAN_UP = 'ivm:deleted', 86400, 'ivm:active', 'ivm:ended'
local RQ_RECORD, RQ_RECORD_TTL_S = 'rq:job:', 600

-- Run the Redis commands in ARGV from index `first` on. Each is preceded by its number of parts.
local function run_commands(first)
  while first <= #ARGV do
    local length = tonumber(ARGV[first])
    redis.call(unpack(ARGV, first + 1, first + length))
    first = first + length + 1
  end
end

-- Append a copy of the whole record to the outbox if the request has a callback or its owner has an endpoint. Because
-- it is a copy, the event survives even if the video is deleted right after its end. `oldest`: drop older entries.
local function publish(record, outbox, listeners, oldest)
  local owner, callback = unpack(redis.call('HMGET', record, 'owner', 'callback'))
  if callback or redis.call('SISMEMBER', listeners, owner or '"local"') == 1 then
    redis.call('XADD', outbox, 'MINID', '~', oldest, '*', unpack(redis.call('HGETALL', record)))
  end
end

-- Decode one JSON value of a record; nil if it is absent or damaged.
local function decode(value)
  if type(value) ~= 'string' then return nil end
  local is_readable, decoded = pcall(cjson.decode, value)
  if is_readable and decoded ~= cjson.null then return decoded end
end

-- Return the keys of all indexes that a job belongs to, but that of its state.
local function indexes_of(record)
  local owner, generation, metadata = unpack(redis.pcall('HMGET', record, 'owner', 'generation', 'metadata'))
  local keys, owner_id, model = {JOBS}, decode(owner), decode(generation)
  if type(owner_id) == 'string' then keys[#keys + 1] = JOBS .. ':' .. owner_id end
  if type(model) == 'table' and type(model.model) == 'string' then keys[#keys + 1] = INDEX .. 'model:' .. model.model end
  local pairs_of_job = decode(metadata)
  for name, value in pairs(type(pairs_of_job) == 'table' and pairs_of_job or {}) do
    if type(name) == 'string' and type(value) == 'string' then
      keys[#keys + 1] = INDEX .. 'metadata:' .. redis.sha1hex(#name .. ':' .. name .. value)
    end
  end
  return keys
end

-- Move a job to the index of its state (JSON), or out of all of them.
local function index_state(id, state)
  for _, other in ipairs({'queued', 'running', 'completed', 'failed', 'cancelled'}) do
    local is_its_own = state == '"' .. other .. '"'
    redis.call(is_its_own and 'ZADD' or 'ZREM', INDEX .. 'state:' .. other, unpack(is_its_own and {0, id} or {id}))
  end
end

-- Write a job into all its indexes. It may be there already.
local function index(id)
  if redis.call('EXISTS', JOBS) == 0 then redis.call('SET', INDEXED, 1) end -- the first job of all
  for _, key in ipairs(indexes_of(RECORD .. id)) do redis.call('ZADD', key, 0, id) end
  index_state(id, redis.pcall('HGET', RECORD .. id, 'state'))
end

-- Take a job out of all indexes, before its record is deleted.
local function unindex(id)
  for _, key in ipairs(indexes_of(RECORD .. id)) do redis.call('ZREM', key, id) end
  index_state(id, nil)
  local now = tonumber(redis.call('TIME')[1])
  redis.call('ZADD', DELETED, now, id)
  redis.call('ZREMRANGEBYSCORE', DELETED, '-inf', now - KEEP_DELETED_S)
end

-- Return the lane of a waiting job, and whether its priority is low. The jobs of one owner and priority share a lane.
-- A job that was put back at the front of its queue has had its turn and is in no lane.
local function lane_of(id)
  local owner, priority, returned = unpack(redis.pcall('HMGET', RECORD .. id, 'owner', 'priority', 'returned'))
  if returned == 'true' then return nil, false end
  return (owner or '"local"') .. (priority == LOW and ' low' or ''), priority == LOW
end

-- Return the index in a queue at which a new job takes its turn, and the ids in the queue. Owners take turns: between
-- two jobs of a lane, or before its first one, every other lane of that priority has at most one job.
local function place_in(queue, owner, is_low)
  local ids, lanes, own = redis.call('LRANGE', queue, 0, -1), {}, owner .. (is_low and ' low' or '')
  local first_low, last_own = 1, 0
  for i, id in ipairs(ids) do
    local lane, other_is_low = lane_of(id)
    lanes[i] = lane or false
    if not other_is_low then first_low = i + 1 end -- those of low priority are at the end
    if lane == own then last_own = i end
  end
  local first, last, has_turn = 1, first_low - 1, {}
  if is_low then first, last = first_low, #ids end
  for i = math.max(first, last_own + 1), last do
    local lane = lanes[i]
    if lane and has_turn[lane] then return i, ids end
    if lane then has_turn[lane] = true end
  end
  return last + 1, ids
end

-- Return the queue of a record's model; nil if the record is damaged.
local function queue_of(record)
  local generation = decode(redis.pcall('HGET', record, 'generation'))
  local model = type(generation) == 'table' and generation.model
  return type(model) == 'string' and QUEUE .. model or nil
end

-- Take a waiting job out of a queue. The later jobs of its lane move up by one turn each. Returns whether it was there.
local function leave(queue, id)
  local start = queue and redis.call('LPOS', queue, id)
  if not start then return false end
  local free, lane = start, lane_of(id)
  for i, other in ipairs(lane and redis.call('LRANGE', queue, start + 1, -1) or {}) do
    if lane_of(other) == lane then
      redis.call('LSET', queue, free, other)
      free = start + i
    end
  end
  redis.call('LSET', queue, free, id)
  redis.call('LREM', queue, -1, id)
  return true
end

-- Take a job out of whichever queue it is in, if its record does not say which.
local function leave_all(id)
  for _, queue in ipairs(redis.call('SMEMBERS', 'rq:queues')) do leave(queue, id) end
end

-- Delete the record of a job that no worker has, or may have any more. Maintenance deletes its files, as soon as a worker
-- that does not know it yet has stopped; RQ's record expires, because its worker may have been killed.
local function erase(id)
  unindex(id)
  redis.call('DEL', RECORD .. id)
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
  publish(record, outbox, listeners, oldest)
  if is_deleted then erase(id) else index_state(id, state) end
end
