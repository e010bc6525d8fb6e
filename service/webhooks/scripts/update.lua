-- Store what follows from an attempt, unless another attempt has been started since. The host has room for another
-- attempt now, so the delivery that has waited longest for it becomes due.
-- KEYS: record, due set, attempts in progress at the host, deliveries that wait for the host.
-- ARGV: id, attempts made including this one, pending state, now, next due time ('' if ended), then fields and values.
redis.call('ZREM', KEYS[3], ARGV[1])
local waiting = redis.call('ZPOPMIN', KEYS[4])
if waiting[1] then redis.call('ZADD', KEYS[2], 'XX', 'LT', ARGV[4], waiting[1]) end
local state, attempts = unpack(redis.call('HMGET', KEYS[1], 'state', 'attempts'))
if state ~= ARGV[3] or attempts ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'taken_until', 'null', unpack(ARGV, 6))
if ARGV[5] == '' then redis.call('ZREM', KEYS[2], ARGV[1]) else redis.call('ZADD', KEYS[2], ARGV[5], ARGV[1]) end
return 1
