-- Values, keys and helpers. The loader puts the files of this folder, sorted by name, in front of every script.

-- Values as records store them, in JSON.
local QUEUED, RUNNING, FAILED, CANCELLED, LOW = '"queued"', '"running"', '"failed"', '"cancelled"', '"low"'
local ENDED = {['"completed"'] = true, [FAILED] = true, [CANCELLED] = true}

-- Keys and their prefixes, as in keys.py and rq_queues.py.
local RECORD, QUEUE, JOBS, INDEX, INDEXED = 'ivm:job:', 'rq:queue:gpu-', 'ivm:jobs', 'ivm:index:', 'ivm:index:complete'
local DELETED, KEEP_DELETED_S, ACTIVE, CLEAN_UP = 'ivm:deleted', 86400, 'ivm:active', 'ivm:ended'
local PREVIEW, KEEP_PREVIEW_S = 'ivm:preview:', 300
local RQ_RECORD, RQ_RECORD_TTL_S, WORKERS, LOADS = 'rq:job:', 600, 'rq:workers:gpu-', 'ivm:loads:'

-- Run the Redis commands in ARGV from index `first` to `last`, the end by default. Each is preceded by its number of
-- parts.
local function run_commands(first, last)
  while first <= (last or #ARGV) do
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
