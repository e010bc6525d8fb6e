-- Claim due deliveries: push their due time back, so that no other dispatcher claims them meanwhile.
-- KEYS: due set. ARGV: now, when a claim expires, limit, prefix of record keys.
-- Returns id, attempts made, id, attempts made, ...
local claimed = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])) do
  local attempts = redis.pcall('HGET', ARGV[4] .. id, 'attempts')
  if type(attempts) == 'string' and string.find(attempts, '^%d+$') then
    redis.call('ZADD', KEYS[1], ARGV[2], id)
    table.insert(claimed, id)
    table.insert(claimed, attempts)
  else  -- the record has expired or is damaged
    redis.call('ZREM', KEYS[1], id)
  end
end
return claimed
