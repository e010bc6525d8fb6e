-- Write an entry of a backup's outbox, once: not again if the restore is repeated, also after it was delivered. It keeps
-- its id, unless the outbox has newer entries; then it becomes the newest.
-- KEYS: 1 outbox, 2 entries that were restored
-- ARGV: 1 id of the entry, 2 .. its fields and values
local name = ARGV[1]
for i = 2, #ARGV, 2 do
  if ARGV[i] == 'id' then name = name .. ' ' .. ARGV[i + 1] end
end
if redis.call('SADD', KEYS[2], name) == 0 then return end
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) > 0 then return end
if redis.pcall('XADD', KEYS[1], ARGV[1], unpack(ARGV, 2)).err then
  redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
end
