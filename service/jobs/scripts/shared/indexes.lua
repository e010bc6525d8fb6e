-- Indexes from which lists of jobs are answered.

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
