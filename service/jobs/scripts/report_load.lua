-- Keep the entry of a worker that has no loaded model, and drop the entries of workers that are silent.
-- KEYS: 1 entries of the model
-- ARGV: 1 worker, 2 why it cannot load the model ('' = it is loading), 3 lifetime of the entry in ms
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for worker in pairs(unloaded(KEYS[1], now, true)) do redis.call('HDEL', KEYS[1], worker) end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now + ARGV[3]) .. ' ' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
