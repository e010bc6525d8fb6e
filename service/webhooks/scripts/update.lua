-- Store what follows from an attempt, unless another attempt has been started since.
-- KEYS: record, due set, attempts in progress at the host.
-- ARGV: id, attempts made including this one, pending state, next due time ('' if ended), then fields and values.
redis.call('ZREM', KEYS[3], ARGV[1])
local state, attempts = unpack(redis.call('HMGET', KEYS[1], 'state', 'attempts'))
if state ~= ARGV[3] or attempts ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'taken_until', 'null', unpack(ARGV, 5))
if ARGV[4] == '' then redis.call('ZREM', KEYS[2], ARGV[1]) else redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1]) end
return 1
