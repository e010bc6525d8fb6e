-- Make a delivery due now with its whole retry schedule ahead. An attempt in progress is left alone.
-- KEYS: record, due set. ARGV: id, pending state, now, seconds to keep the record.
local state, attempts, taken_until = unpack(redis.call('HMGET', KEYS[1], 'state', 'attempts', 'taken_until'))
if not state then return end
if state == ARGV[2] and taken_until and taken_until ~= 'null' and tonumber(taken_until) > tonumber(ARGV[3]) then return end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'started_with', attempts, 'ended_at', 'null', 'error', 'null',
  'next_attempt_at', ARGV[3], 'taken_until', 'null')
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
