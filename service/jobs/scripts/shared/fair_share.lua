-- The order of a queue: owners take turns.

-- Return the lane of a waiting job, and whether its priority is low. The jobs of one owner and priority share a lane.
-- A job that was put back at the front of its queue has had its turn and is in no lane.
local function lane_of(id)
  local owner, priority, returned = unpack(redis.pcall('HMGET', RECORD .. id, 'owner', 'priority', 'returned'))
  if returned == 'true' then return nil, false end
  return (owner or '"local"') .. (priority == LOW and ' low' or ''), priority == LOW
end

-- Return the ids in a queue, the lane of each (false if it is in none), and the index of the first one of low priority.
local function lanes_in(queue)
  local ids, lanes, first_low = redis.call('LRANGE', queue, 0, -1), {}, 1
  for i, id in ipairs(ids) do
    local lane, is_low = lane_of(id)
    lanes[i] = lane or false
    if not is_low then first_low = i + 1 end -- those of low priority are at the end
  end
  return ids, lanes, first_low
end

-- Return the index among lanes at which a new job takes its turn. Owners take turns: between two jobs of a lane, or
-- before its first one, every other lane of that priority has at most one job.
local function place_among(lanes, first_low, owner, is_low)
  local own, last_own = owner .. (is_low and ' low' or ''), 0
  for i, lane in ipairs(lanes) do
    if lane == own then last_own = i end
  end
  local first, last, has_turn = 1, first_low - 1, {}
  if is_low then first, last = first_low, #lanes end
  for i = math.max(first, last_own + 1), last do
    local lane = lanes[i]
    if lane and has_turn[lane] then return i end
    if lane then has_turn[lane] = true end
  end
  return last + 1
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
