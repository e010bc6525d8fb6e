-- Remove an outbox entry and run the commands that replace it. Only the caller that removes the entry runs them, and
-- only if none has before: a restore can add an entry again that became deliveries since the backup.
-- KEYS: 1 outbox, 2 what the commands create (optional)
-- ARGV: 1 entry id, 2 commands (JSON: a list of lists of strings)
-- Returns 1 if this call removed the entry and ran the commands, else 0.
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 or (KEYS[2] and redis.call('EXISTS', KEYS[2]) == 1) then return 0 end
for _, command in ipairs(cjson.decode(ARGV[2])) do redis.call(unpack(command)) end
return 1
