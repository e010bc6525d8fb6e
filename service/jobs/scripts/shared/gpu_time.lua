-- What jobs cost: GPU time in their records, and the usage of their owners per day (UTC).

-- As in usage.py. Usage is kept for longer than a year, so that two years' months can be compared.
local USAGE, USAGE_OWNERS, KEEP_USAGE_S, DAY_S = 'ivm:usage:', 'ivm:usage:owners:', 400 * 86400, 86400
local USAGE_OF = {['"completed"'] = 'videos', [FAILED] = 'failed', [CANCELLED] = 'cancelled'}

-- Add the GPU time of an execution, of which an earlier report may have added a part. `total_ms`: of steps that no
-- earlier execution has finished, since this one began. A repeated report adds nothing.
local function add_gpu_time(record, total_ms)
  local added = tonumber(redis.call('HGET', record, 'gpu_added_ms') or 0) or 0
  if total_ms <= added then return end
  redis.call('HINCRBY', record, 'gpu_ms', total_ms - added)
  redis.call('HSET', record, 'gpu_added_ms', total_ms)
end

-- Return the GPU time of a job that ends, in ms: what its executions have reported, and the decoding of the one that
-- completed it. Workers of older versions report nothing; then it is the time of that execution.
local function final_gpu_time(record)
  local reported, timings = unpack(redis.call('HMGET', record, 'gpu_ms', 'timings'))
  timings = decode(timings)
  if type(timings) ~= 'table' then timings = {} end
  local function ms(phase) return math.floor(1000 * (tonumber(timings[phase]) or 0) + 0.5) end
  local total = tonumber(reported or 0) or 0
  if total == 0 then total = ms('encoding') + ms('sampling') end
  return total + ms('decoding')
end

-- Count a job that has just ended. `state`: JSON.
local function count_usage(record, state)
  local owner, output = unpack(redis.call('HMGET', record, 'owner', 'output'))
  owner, output = decode(owner), decode(output)
  if type(owner) ~= 'string' or not USAGE_OF[state] then return end
  local gpu_ms = final_gpu_time(record)
  redis.call('HSET', record, 'gpu_ms', gpu_ms)
  local day = math.floor(tonumber(redis.call('TIME')[1]) / DAY_S)
  local usage, owners = USAGE .. day .. ':' .. owner, USAGE_OWNERS .. day
  redis.call('HINCRBY', usage, USAGE_OF[state], 1)
  redis.call('HINCRBY', usage, 'gpu_ms', gpu_ms)
  if USAGE_OF[state] ~= 'videos' then redis.call('HINCRBY', usage, 'failed_gpu_ms', gpu_ms) end
  local size = type(output) == 'table' and tonumber(output.size_bytes) or 0
  if size > 0 then redis.call('HINCRBY', usage, 'bytes', string.format('%.0f', size)) end
  redis.call('EXPIRE', usage, KEEP_USAGE_S)
  redis.call('ZADD', owners, 0, owner)
  redis.call('EXPIRE', owners, KEEP_USAGE_S)
end

-- Return the GPU time of an owner today, that which its unended jobs are expected to take, both in ms, and the seconds
-- until the day ends. `waiting`: set of its queued jobs; `owner`: JSON.
local function quota_state(owner, waiting)
  local now = tonumber(redis.call('TIME')[1])
  local used = redis.call('HGET', USAGE .. math.floor(now / DAY_S) .. ':' .. decode(owner), 'gpu_ms')
  local expected = 0
  local function expect(id)
    local its_owner, ms, so_far = unpack(redis.pcall('HMGET', RECORD .. id, 'owner', 'expected_gpu_ms', 'gpu_ms'))
    if its_owner == owner then expected = expected + math.max(tonumber(ms or 0) or 0, tonumber(so_far or 0) or 0) end
  end
  for _, id in ipairs(redis.call('SMEMBERS', waiting)) do expect(id) end
  for _, id in ipairs(redis.call('ZRANGE', INDEX .. 'state:running', 0, -1)) do expect(id) end
  return tonumber(used or 0) or 0, expected, DAY_S - now % DAY_S
end
