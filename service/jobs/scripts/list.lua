-- Walk the smallest index of a filtered list for a bounded while, and return the records that match.
-- ARGV: 1 the list (JSON): {start, stop: bounds as ZRANGE BYLEX takes them, is_descending, limit: most records,
--       indexes: one list of keys per condition, of which the job must be in at least one; the first one names all jobs
--       that the caller can see, states, model, metadata: the same conditions for jobs that are not indexed yet}
-- Returns {last id looked at, whether the index ends there, id, record as HGETALL returns it, id, record, ...}.
local BATCH, UNINDEXED_BATCH = 500, 50 -- bound how long one call blocks Redis
local list = cjson.decode(ARGV[1])
local is_indexed = redis.call('EXISTS', INDEXED) == 1
local conditions = is_indexed and list.indexes or {list.indexes[1]}
local batch = is_indexed and BATCH or UNINDEXED_BATCH

local function size(keys)
  local sum = 0
  for _, key in ipairs(keys) do sum = sum + redis.call('ZCARD', key) end
  return sum
end

local smallest, walked
for _, keys in ipairs(conditions) do
  local count = size(keys)
  if not smallest or count < smallest then smallest, walked = count, keys end
end

-- Return the next ids of the walked indexes, merged.
local function next_ids()
  local ids = {}
  for _, key in ipairs(walked) do
    local range = {'ZRANGE', key, list.start, list.stop, 'BYLEX'}
    if list.is_descending then range[#range + 1] = 'REV' end
    range[#range + 1], range[#range + 2], range[#range + 3] = 'LIMIT', 0, batch
    for _, id in ipairs(redis.call(unpack(range))) do ids[#ids + 1] = id end
  end
  if #walked > 1 then
    table.sort(ids, list.is_descending and function(a, b) return a > b end or nil)
  end
  return ids
end

local function is_in(id, keys)
  for _, key in ipairs(keys) do
    if redis.call('ZSCORE', key, id) then return true end
  end
  return false
end

-- Whether a job that may not be indexed meets the conditions.
local function has_content(id)
  local generation, metadata = unpack(redis.pcall('HMGET', RECORD .. id, 'generation', 'metadata'))
  generation, metadata = decode(generation), decode(metadata)
  if list.model and (type(generation) ~= 'table' or generation.model ~= list.model) then return false end
  for name, value in pairs(list.metadata) do
    if type(metadata) ~= 'table' or metadata[name] ~= value then return false end
  end
  return true
end

local function matches(id)
  for _, keys in ipairs(conditions) do
    if keys ~= walked and not is_in(id, keys) then return false end
  end
  if #list.states == 0 then return is_indexed or has_content(id) end
  local state = redis.pcall('HGET', RECORD .. id, 'state') -- an index lags if an older worker has ended the job
  for _, wanted in ipairs(list.states) do
    if state == '"' .. wanted .. '"' then return is_indexed or has_content(id) end
  end
  return false
end

local ids, found, last = next_ids(), {'', 0}, nil
for i = 1, math.min(#ids, batch) do
  last = ids[i]
  if last ~= ids[i - 1] and matches(last) then
    local record = redis.pcall('HGETALL', RECORD .. last)
    if record.err then record = {'', ''} end -- not a hash
    if #record > 0 then
      found[#found + 1] = last
      found[#found + 1] = record
    else -- left behind by an older worker, or by a damaged record that has been deleted
      for _, key in ipairs(walked) do redis.call('ZREM', key, last) end
    end
    if (#found - 2) / 2 == list.limit then break end
  end
end
found[1] = last or ''
found[2] = (last == nil or (last == ids[#ids] and #ids < batch)) and 1 or 0
return found
