-- The newest preview of a running job. `preview_at` in its record is when it was stored, and so names it.

local function store_preview(record, key, picture)
  local time = redis.call('TIME')
  redis.call('SET', key, picture, 'EX', KEEP_PREVIEW_S)
  redis.call('HSET', record, 'preview_at', string.format('%d.%06d', time[1], time[2]))
end

local function drop_preview(id)
  redis.call('DEL', PREVIEW .. id)
  redis.call('HDEL', RECORD .. id, 'preview_at')
end
