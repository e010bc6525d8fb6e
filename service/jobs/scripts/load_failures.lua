-- Why models cannot be loaded. A model can be, or may become so, as long as a worker has loaded it or is loading it.
-- ARGV: the models
-- Returns one reason per model, '' if no worker says that it cannot be loaded.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function is_loaded(model)
  for _, worker in ipairs(redis.call('SMEMBERS', WORKERS .. model)) do
    if redis.call('EXISTS', worker) == 1 then return true end
  end
  return false
end

local function reason_of(model)
  local found = ''
  for _, reason in pairs(unloaded(LOADS .. model, now, false)) do
    if reason == '' then return '' end -- it is loading, and may succeed
    if reason > found then found = reason end -- the same one every time
  end
  return found ~= '' and not is_loaded(model) and found or ''
end

local reasons = {}
for i, model in ipairs(ARGV) do reasons[i] = reason_of(model) end
return reasons
