-- Read many records, each with the number of jobs ahead of it, in one round trip.
-- KEYS: records
-- Returns one text per record, because a reply of many parts takes the client long to parse: '' = no record, 'damaged', or
-- its JSON and in a second line the position of a queued job (0 if a worker has just taken it from the queue).
local function get(key)
  local record = redis.call('HGETALL', key)
  if #record == 0 then return '' end
  local parts, found = {}, {}
  for i = 1, #record, 2 do
    local name, value = record[i], record[i + 1]
    parts[#parts + 1] = '"' .. name .. '":' .. value
    found[name] = value
  end
  local text = '{' .. table.concat(parts, ',') .. '}\n'
  if found.state ~= QUEUED then return text end
  return text .. (redis.call('LPOS', QUEUE .. cjson.decode(found.generation).model, cjson.decode(found.id)) or 0)
end

local answers = {}
for i, key in ipairs(KEYS) do
  local is_readable, answer = pcall(get, key)
  answers[i] = is_readable and answer or 'damaged'
end
return answers
