-- Remove an outbox entry and run the commands that replace it. Only the caller that removes the entry runs them.
-- KEYS: 1 outbox
-- ARGV: 1 entry id, 2 commands (JSON: a list of lists of strings)
-- Returns 1 if this call removed the entry, else 0.
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
for _, command in ipairs(cjson.decode(ARGV[2])) do redis.call(unpack(command)) end
return 1
