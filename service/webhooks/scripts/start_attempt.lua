-- Start the next attempt. The number of attempts made is the fence: of several dispatchers only one gets past it.
-- At a host with too many attempts in progress, a delivery waits until one of them ends (see update.lua); because a
-- dispatcher may die, it also becomes due again by itself, each time after twice as long.
-- KEYS: record, due set, attempts in progress at the host, deliveries that wait for the host.
-- ARGV: id, attempts made, pending state, now, when the attempt counts as lost, limit per host, seconds to postpone.
-- Returns 1 if the attempt may be made.
local state, attempts, taken_until, postponed =
  unpack(redis.call('HMGET', KEYS[1], 'state', 'attempts', 'taken_until', 'postponed'))
local now = tonumber(ARGV[4])
if state ~= ARGV[3] or attempts ~= ARGV[2] then return 0 end
if taken_until and taken_until ~= 'null' and tonumber(taken_until) > now then return 0 end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', ARGV[4])
if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[6]) then
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[7]) * 2 ^ math.min(postponed, 6), ARGV[1])
  redis.call('ZADD', KEYS[4], 'NX', ARGV[4], ARGV[1])
  redis.call('EXPIRE', KEYS[4], 3600)
  redis.call('HINCRBY', KEYS[1], 'postponed', 1)
  return 0
end
redis.call('ZADD', KEYS[3], ARGV[5], ARGV[1])
redis.call('EXPIRE', KEYS[3], 3600)
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('HSET', KEYS[1], 'attempts', tonumber(attempts) + 1, 'taken_until', ARGV[5], 'postponed', 0)
redis.call('ZADD', KEYS[2], ARGV[5], ARGV[1])
return 1
