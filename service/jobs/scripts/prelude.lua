-- Shared by the scripts of this folder; the loader puts this file in front of each of them.

-- Values as records store them, in JSON.
local QUEUED, RUNNING, CANCELLED, LOW = '"queued"', '"running"', '"cancelled"', '"low"'
local ENDED = {['"completed"'] = true, ['"failed"'] = true, [CANCELLED] = true}

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
