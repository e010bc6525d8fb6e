-- Read many records, each with the number of jobs ahead of it, in one round trip.
-- KEYS: records
-- ARGV: the job ids
-- Returns one list per record: {} = no record, {'damaged'}, {JSON}, or {JSON, position} for a queued job (no position
-- if a worker has taken it from the queue). The values are JSON already and become one text, because a reply of fifty
-- parts takes the client long to parse.
local function get(key, id)
  local record = redis.call('HGETALL', key)
  if #record == 0 then return {} end
  local parts, state, generation = {}, nil, nil
  for i = 1, #record, 2 do
    local name, value = record[i], record[i + 1]
    parts[#parts + 1] = '"' .. name .. '":' .. value
    if name == 'state' then state = value elseif name == 'generation' then generation = value end
  end
  local text = '{' .. table.concat(parts, ',') .. '}'
  if state ~= QUEUED then return {text} end
  return {text, redis.call('LPOS', QUEUE .. cjson.decode(generation).model, id)}
end

local found = {}
for i, key in ipairs(KEYS) do
  local is_readable, answer = pcall(get, key, ARGV[i])
  found[i] = is_readable and answer or {'damaged'}
end
return found
